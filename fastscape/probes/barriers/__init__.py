"""Is the loss low between two solutions?"""

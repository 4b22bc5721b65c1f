"""What does the loss look like along lines and planes?"""

"""How does the response of the loss scale with the distance?"""

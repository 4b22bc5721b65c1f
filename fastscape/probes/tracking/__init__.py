"""How does the geometry change while a model trains?"""

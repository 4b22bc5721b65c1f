"""How far does the loss rise within a ball?"""

"""Can this machine and this model be measured, and what would go wrong?"""

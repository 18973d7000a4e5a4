"""How do several processes serve as one guard?"""

"""How is a running guard spoken to?"""

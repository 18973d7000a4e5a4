"""What does a guard remember of clients after their connections have ended?"""

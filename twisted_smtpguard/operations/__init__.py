"""What does an operator ask and change while a guard runs?"""

"""Where are the counts of clients kept?"""

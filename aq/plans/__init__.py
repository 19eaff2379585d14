"""What layers can choose from, what they choose, and the store of what was made for it."""

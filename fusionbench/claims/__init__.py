"""Executable checks of what is commonly said about fusion: ``table`` has the statements, the other files check them."""

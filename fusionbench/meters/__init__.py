"""One meter per quantity: each takes a call and gives back its part of the record."""

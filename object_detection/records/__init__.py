"""Records and the card that describes them: writing, reading, class map."""

"""What to do with a model that is trained: talk with it (`chat`), give it an address (`serve`),
publish it (`push`, with the `card`)."""

"""What to do with a model that is trained.

Talk with it (`chat`), give it an address (`serve`), publish it (`push`, with the `card`)."""

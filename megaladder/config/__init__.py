"""What a run is made of.

One frozen pydantic model a verb, strict YAML, cross-field rules whose messages name the fix. No
torch."""

"""The versions of the schema, in order; one that was released is never changed."""

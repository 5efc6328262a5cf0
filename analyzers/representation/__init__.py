"""What layers share: how alike the representations of one or two networks are."""

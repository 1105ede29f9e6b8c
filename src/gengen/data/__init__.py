"""From sources to prepared shards to datamodules, in an order that is a function."""

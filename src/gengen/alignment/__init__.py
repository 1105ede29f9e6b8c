"""Post-training as pure functions over tensors: log-probabilities, KL estimators, advantages, losses.

Everything per token lives on the shifted axis (B, T - 1): index i belongs to tokens[:, i + 1]. A mask is 1 where that
token is one of the response, up to and including its end token: rows are zeros (prompt), ones, zeros (padding). What
lies under a 0 is never read.
"""

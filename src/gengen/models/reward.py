"""Reward models and critics: a transformer that says at each token what the text is worth up to there."""

import torch
from torch import Tensor, nn

from gengen.config.model import GPTConfig
from gengen.models.completions import at_last_token
from gengen.models.gpt import GPT


class RewardModel(GPT):
    """GPT with one output, w x + b, in place of the vocabulary's.

    gain and bias are set for each checkpoint, so that the scores of the reference's answers, gain * output + bias,
    have mean 0 and variance 1 (Ziegler et al. 2019, section 2.1): what a nat of KL costs then means the same for all.
    """

    new_parts = ("value", "gain", "bias")
    gain: Tensor
    bias: Tensor

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        width = self.embedding.embedding_dim
        del self.head
        self.value = nn.Linear(width, 1)
        nn.init.normal_(self.value.weight, std=(width + 1) ** -0.5)  # Stiennon et al. 2020
        nn.init.zeros_(self.value.bias)
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("bias", torch.zeros(()))

    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        """Return the output at every token of (B, T) given those before it, (B, T) fp32."""
        features = self.features(tokens)
        with torch.autocast(tokens.device.type, enabled=False):
            values: Tensor = self.value(features.float())[..., 0]
        return values

    def normalized(self, values: Tensor) -> Tensor:
        """Turn outputs, of any shape, into scores."""
        return self.gain * values + self.bias

    @torch.no_grad()
    def normalize(self, outputs: Tensor) -> None:
        """Set gain and bias so that these outputs (N,) become scores of mean 0 and variance 1."""
        self.gain.copy_(1 / outputs.std(correction=0).clamp(min=1e-6))
        self.bias.copy_(-self.gain * outputs.mean())

    def raw_scores(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the output at each answer's last token, (B,); tokens and mask as in `completions.token_values`."""
        return at_last_token(self(tokens), mask)

    def adapt_weights(self, weights: dict[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
        """Return the trunk of a language model, under this model's own head."""
        weights = super().adapt_weights(weights, vocab_size)
        trunk = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
        value = {"value.weight": self.value.weight, "value.bias": self.value.bias}
        return value | {"gain": self.gain, "bias": self.bias} | trunk

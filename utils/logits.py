"""What a model makes of its LM head's products before it calls them logits."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from utils.cpu_linear import product


@dataclass(frozen=True)
class Logits:
    """What a model makes of `states @ weight.T + bias` before it calls it logits: times `scale` (Granite, Cohere), then
    soft_cap * tanh(logits / soft_cap) where there is a soft cap (Gemma 2). Then comes the temperature."""

    scale: float = 1.0
    soft_cap: float | None = None

    @classmethod
    def of(cls, config: PretrainedConfig) -> "Logits":
        settings = config.get_text_config().to_dict()
        scale = settings.get("logit_scale") or 1 / (settings.get("logits_scaling") or 1)
        return cls(scale, settings.get("final_logit_softcapping"))

    def at(self, temperature: float, products: Tensor) -> Tensor:
        """(n, V) products, which are overwritten -> logits at the temperature, in float32 at least."""
        products = products.to(torch.promote_types(products.dtype, torch.float))
        if self.soft_cap is None:
            return products if temperature == self.scale else products.div_(temperature / self.scale)
        return products.mul_(self.scale / self.soft_cap).tanh_().mul_(self.soft_cap / temperature)

    def cap_gradients(self, temperature: float, logits: Tensor, grad_logits: Tensor) -> None:
        """With a soft cap: gradients (n, V) of `logits`, which `at` returned, become in place those of what is capped,
        over the same factors."""
        grad_logits.addcmul_(grad_logits, (logits * (temperature / self.soft_cap)).square_(), value=-1)  # 1 - tanh^2


PLAIN_LOGITS = Logits()


def compute_logits(
    states: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, logits: Logits
) -> Tensor:
    """The head (V, D), (V,) of states (n, D): logits at the temperature, (n, V), in float32 at least."""
    return logits.at(temperature, product(states, weight, bias))

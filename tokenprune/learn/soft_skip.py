"""A frozen decoder whose blocks are computed for all tokens, and passed by as far as gates say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UnsupportedModelError
from ..policies.skipping import skipped
from ..predictors import TokenRouter
from ..stages.layer_plan import attention_of
from ..stages.skip import keep_highest
from ..stages.skip_parts import find_skip_parts
from ..stages.skip_scores import received
from ..stages.tap import listen
from .masks import log_gate, log_retention, retention_mask, straight_through

LEAST = 1e-9  # of the attention to a skipped token: nothing to the sums, and enough for a gradient in float32


@dataclass(kw_only=True)
class Decision:
    """What the router said in front of one block.

    Attributes:
        logits: [B, n, 2], (skip, keep).
        share: s_i.
        keep: [B, n] bool, what was computed; static: [B, n] bool, what the static router would have.
    """

    logits: Tensor
    share: float
    keep: Tensor
    static: Tensor

    def lacking(self) -> Tensor:
        """max(s_i - s_hat_i, 0), where s_hat_i is the mean probability to skip."""
        return (self.share - self.logits.softmax(-1)[..., 0].mean()).clamp_min(0.0)

    def apart(self) -> Tensor:
        """Cross entropy of the static router's decisions."""
        return F.cross_entropy(self.logits.flatten(0, 1), self.static.long().flatten())


@dataclass(kw_only=True)
class _Run:
    """B texts of equal length, the first n tokens of which may skip."""

    router: TokenRouter
    shares: Sequence[float]
    n: int
    temperature: float
    noise: float
    scores: Tensor
    decisions: list[Decision] = field(default_factory=list)
    gate: Tensor | None = None  # [B, L, 1] of the block that runs
    keep: Tensor | None = None  # [B, n] bool
    entered: Tensor | None = None


class SoftSkip:
    """Gradients flow through the decoder to the router; the decoder takes none.

    Block i answers g block(x) + (1 - g) x, with log g added to the attention to each key. Forward, g is 1 for exactly
    the tokens that `FTP` would compute and 0 for the others, so the numbers are those of the pruned model; backward it
    is that of a top-k relaxed at a temperature.
    """

    def __init__(self, model: nn.Module):
        self.model, self.parts = model, find_skip_parts(model)
        self.head = model.get_output_embeddings()
        if self.head is None:
            raise UnsupportedModelError(
                f"model={type(model).__name__} has no words to answer with: give one with a head."
            )
        self._run: _Run | None = None

    @contextmanager
    def attached(self) -> Iterator[SoftSkip]:
        """Frozen, in eval mode, with hooks, and with an attention whose mask takes gradients; as it was afterwards."""
        decoder, asked = self.parts.decoder, [one.requires_grad for one in self.model.parameters()]
        attention, training, undo = self.parts.attention, self.model.training, []
        self.model.requires_grad_(False).eval()
        decoder.set_attn_implementation("eager")
        try:
            for i, layer in enumerate(decoder.layers):
                before = layer.register_forward_pre_hook(
                    lambda module, args, kwargs, i=i: self._before(i, args, kwargs), with_kwargs=True
                )
                undo += [before.remove, layer.register_forward_hook(self._behind).remove]
                undo.append(listen(attention_of(layer), self._note))
            yield self
        finally:
            while undo:
                undo.pop()()
            decoder.set_attn_implementation(attention)
            for one, wanted in zip(self.model.parameters(), asked, strict=True):
                one.requires_grad_(wanted)
            self.model.train(training)
            self._run = None

    @torch.no_grad()
    def dense(self, ids: Tensor, n: int) -> Tensor:
        """[B (L - n), V] logits of ids[:, n:] by the model as it is."""
        return self._logits(ids, n)

    def routed(
        self, ids: Tensor, n: int, router: TokenRouter, shares: Sequence[float], *, temperature: float, noise: float
    ) -> tuple[Tensor, list[Decision]]:
        """The same where the first n tokens skip blocks, and what was decided.

        Args:
            shares: s_i of every block.
            noise: scale of the Gumbel noise on both logits, of the temperature.
        """
        scores = torch.full((len(ids), n), 1 / n, device=ids.device)
        self._run = run = _Run(router=router, shares=shares, n=n, temperature=temperature, noise=noise, scores=scores)
        try:
            return self._logits(ids, n), run.decisions
        finally:
            self._run = None

    def _logits(self, ids: Tensor, n: int) -> Tensor:
        hidden = self.parts.decoder(input_ids=ids, use_cache=False).last_hidden_state
        return self.head(hidden[:, n - 1 : -1].flatten(0, 1))

    # Hooks

    def _before(self, i: int, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        run = self._run
        if run is None:
            return None
        run.gate = run.keep = None
        if not (k := skipped(run.shares[i], run.n)):
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        batch, n = run.scores.shape
        soft, run.keep = self._decide(run, run.shares[i], k)
        gate = straight_through(soft, run.keep.float())
        run.gate, run.entered = F.pad(gate, (0, hidden.shape[1] - n), value=1.0)[..., None], hidden
        places = torch.cartesian_prod(*(torch.arange(size, device=hidden.device) for size in (batch, n)))
        mask = retention_mask(None, places, log_gate(gate, LEAST).flatten(), hidden)
        return args, {**kwargs, "attention_mask": mask}

    def _decide(self, run: _Run, share: float, k: int) -> tuple[Tensor, Tensor]:
        """[B, n] gates of the relaxed choice, and the choice."""
        batch, n = run.scores.shape
        place = torch.arange(n, device=run.scores.device).expand(batch, n)
        real = torch.ones_like(place, dtype=torch.bool)
        logits = run.router(place, real, run.scores, share)
        drawn = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6).log().neg().log().neg()  # Gumbel
        skip, keep = (logits + run.noise * run.temperature * drawn).unbind(-1)
        u, kept = keep - skip, [n - k] * batch
        among = u.new_full((batch,), n - k - 2).clamp(0.5, n - 2.5)  # of all but the first and the last token
        soft = F.pad(log_retention(u[:, 1:-1], among, run.temperature).exp(), (1, 1), value=1.0)
        choice = keep_highest(u.detach(), real, place, kept).keep
        static = keep_highest(place.float(), real, place, kept).keep
        run.decisions.append(Decision(logits=logits, share=share, keep=choice, static=static))
        return soft, choice

    def _behind(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        run = self._run
        return None if run is None or run.gate is None else torch.lerp(run.entered, output, run.gate)

    def _note(self, module: nn.Module, query: Tensor, key: Tensor, mask: Any, options: dict[str, Any]) -> None:
        run = self._run
        if run is None:
            return
        keep = torch.ones_like(run.scores, dtype=torch.bool) if run.keep is None else run.keep
        active = F.pad(keep, (0, key.shape[2] - run.n))
        found = received(query, key, mask, options, active, run.router.rows)[:, : run.n]
        run.scores = torch.where(keep, found, run.scores)

"""What tests look at a model and a policy with."""

import torch


def snapshot(model):
    """Everything that could differ after wrap and remove."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs")
    more = ("_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks")
    return {
        "modules": {name: type(module) for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "hooks": {
            name: [list(getattr(module, kind)) for kind in (*hooks, *more)] for name, module in model.named_modules()
        },
        "config": model.config.to_dict(),
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
    }


def same(a, b):
    weights = all(torch.equal(a["weights"][name], b["weights"][name]) for name in a["weights"])
    return weights and all(a[part] == b[part] for part in a if part != "weights")


def spy(seen, needs):
    def relevance(tokens):
        seen.append(tokens)
        return tokens.features.float().sum(-1)

    relevance.needs = frozenset(needs)
    return relevance

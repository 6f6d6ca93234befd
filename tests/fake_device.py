"""A device that computes on the CPU, refuses what CUDA would refuse, and counts what would make the host wait for it.

`python -m tests.fake_device` answers, in JSON, which lines of code wait in one forward of the models and policies asked
for. It takes PrivateUse1 for itself, hence a process of its own.
"""

import json
import sys
import traceback
from contextlib import ExitStack
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

ROOT = Path(__file__).parents[1]
NAME = "fakegpu"
OURS = tuple(str(ROOT / folder) for folder in ("tokenprune", "adapters"))
BENEATH = (str(Path(torch.__file__).parent), __file__)
# Operations whose result has a size, or a value, that the host has to read
READS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim", "item"}


class OnDevice(torch.Tensor):
    """A tensor whose values lie in a CPU tensor, `raw`, and that says it lies on the device."""

    @staticmethod
    def __new__(cls, raw):
        facts = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "dtype": raw.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, raw.size(), device=torch.device(NAME, 0), **facts)
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})

    def __format__(self, spec):
        LOG.add("format")
        return format(self.raw, spec)


class Module(_DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


class Log:
    """Where the host waited: (whose code, operation, file:line), the code being the innermost that is not torch's."""

    def __init__(self):
        self.open, self.waits = False, []

    def add(self, what):
        if not self.open:
            return
        frames = (frame for frame in reversed(traceback.extract_stack()) if not frame.filename.startswith(BENEATH))
        frame = next(frames)
        whose = "ours" if frame.filename.startswith(OURS) else "model"
        self.waits.append((whose, what, f"{Path(frame.filename).name}:{frame.lineno}"))


LOG = Log()


def raw(value):
    return value.raw if isinstance(value, OnDevice) else value


def on_device(value):
    return OnDevice(value) if isinstance(value, torch.Tensor) and not isinstance(value, OnDevice) else value


def dispatched(func, args, kwargs):
    """The operation on the CPU, its result on the device if any argument or `device=` is."""
    name, flat = func._schema.name.removeprefix("aten::"), []
    tree_map(flat.append, (args, kwargs))
    there, device = any(isinstance(one, OnDevice) for one in flat), kwargs.get("device")
    here = [one for one in flat if isinstance(one, torch.Tensor) and not isinstance(one, OnDevice) and one.ndim]
    if there and here and name not in ("copy_", "_to_copy"):
        if not name.startswith("index"):
            raise RuntimeError(f"{name}: tensors on the host and on the device")
        LOG.add(f"{name} by indices of the host")
    if device is not None:
        target = torch.device(device).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu")}
        if name == "_to_copy" and target != there and (there or not kwargs.get("non_blocking")):
            LOG.add("to the host" if there else "to the device, blocking")
        there = target
    elif name == "copy_" and isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice):
        LOG.add("copy_ between host and device")
    elif there and (name in READS or (name.startswith("index") and by_mask(args[1]))):
        LOG.add(name)
    if name in ("_local_scalar_dense", "is_nonzero", "equal"):
        there = False
    out = func(*tree_map(raw, args), **tree_map(raw, kwargs))
    if name.endswith("_") and not name.startswith("_") and isinstance(args[0], OnDevice):
        return args[0]
    return tree_map(on_device, out) if there else out


def by_mask(indices):
    listed = indices if isinstance(indices, (list, tuple)) else [indices]
    return any(isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8) for one in listed)


class Factories(TorchDispatchMode):
    """`torch.zeros(..., device=...)`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})


class Literals(TorchFunctionMode):
    """What does not pass the dispatcher, or asks for kernels of the device: `torch.tensor`, fused attention."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == NAME:
            LOG.add(f"{func.__name__}(device=...)")
            kwargs.pop("device")
            return OnDevice(func(*tree_map(raw, args), **kwargs))
        if func is torch.nn.functional.scaled_dot_product_attention:
            return on_device(func(*tree_map(raw, args), **tree_map(raw, kwargs)))
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], OnDevice):
            args = (args[0], tree_map(literal, args[1], is_leaf=lambda one: isinstance(one, list)), *args[2:])
        if func in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__) and isinstance(args[0], OnDevice):
            LOG.add(func.__name__)
            return func(args[0].raw, *args[1:], **kwargs)
        return func(*args, **kwargs)


def literal(index):
    """An index; a list of numbers is copied to the device, which waits."""
    if not isinstance(index, list):
        return index
    LOG.add("index by a list")
    return OnDevice(torch.tensor(index))


def move(model):
    """All parameters and buffers onto the device, in place."""
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = torch.nn.Parameter(OnDevice(value.data), requires_grad=False)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = OnDevice(value)


@torch.inference_mode(False)
@torch.no_grad()
def waits(family, policy, images, stretch):
    """Where the host waits in one forward, from the projector's output to `stretch`: "layers" (the first layer is
    entered) or "logits" (the end). And the largest difference of its logits from those on the CPU."""
    from transformers import DynamicCache

    import tokenprune
    from tokenprune.eval.instead import instead

    model, given = family.model(), family.inputs(images)
    with tokenprune.wrap(model, policy):
        expected = model(**given).logits
    move(model)
    inputs = {name: OnDevice(value) for name, value in given.items()}
    outer = getattr(model, "model", model)
    decoder = outer.language_model
    methods = [name for name in ("get_image_features", "get_video_features") if hasattr(outer, name)]

    def opens(method):
        def encoded(*args, **kwargs):
            out = method(*args, **kwargs)
            LOG.open = True
            return out

        return encoded

    def entered(*_):
        LOG.open = stretch == "logits"

    LOG.waits, LOG.open = [], False
    with Literals(), Factories(), tokenprune.wrap(model, policy) as handle, ExitStack() as stack:
        for name in methods:
            stack.enter_context(instead(outer, name, opens(getattr(outer, name))))
        hook = decoder.layers[0].register_forward_pre_hook(entered)
        model(**inputs)  # what is made once is no matter of every forward
        LOG.waits, LOG.open = [], False
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))  # as generate hands it over
        logits = model(**inputs, past_key_values=cache).logits.raw
        LOG.open = False
        hook.remove()
        report = handle.report()
    difference = float((logits - expected).abs().max())
    return {"waits": LOG.waits, "difference": difference, "kept": report.kept, "total": report.total}


def asked(name):
    """ "divprune" or "layer:fastv" -> the policy."""
    from tests.default_layer_policies import LAYER_POLICIES
    from tests.default_policies import POLICIES

    kind, _, rest = name.rpartition(":")
    return (LAYER_POLICIES if kind else POLICIES)[rest](keep=0.3)


def main():
    """Reads a line of JSON per case, [family, policy, images, stretch], and answers one for each."""
    from tests.families import BY_NAME
    from tokenprune.stages.checks import Checks

    _setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    later = []
    Checks.require = lambda self, holds, error: later.append((raw(holds), error))  # as on CUDA: read when all is over
    for line in sys.stdin:
        family, policy, images, stretch = json.loads(line)
        found = waits(BY_NAME[family], asked(policy), tuple(images), stretch)
        for holds, error in later:
            if not bool(holds):
                raise error
        later.clear()
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

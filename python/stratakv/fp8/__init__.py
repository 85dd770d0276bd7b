"""FP8 matrix products for a model's linear layers, critical tokens excepted.

    import stratakv
    report = stratakv.fp8.convert(model, critical_fraction=0.05)
    print(report)

`convert` decides once, by what the hardware can do, and changes nothing where it can't. The rest:
`linear.py` the layer, `training.py` the one that trains, `routing.py` which tokens are critical, `plan.py`
which layers are converted, `quantize.py` formats and layouts, `matmul.py` products, `capability.py` the
decision. Measured quality: `docs/fp8.md`.
"""

from stratakv.fp8.capability import Capability, detect
from stratakv.fp8.convert import convert, convert_for_training, revert, token_routing
from stratakv.fp8.linear import Fp8Linear
from stratakv.fp8.plan import ConversionReport
from stratakv.fp8.routing import TokenRouting
from stratakv.fp8.training import Fp8TrainingLinear

__all__ = [
    "Capability",
    "ConversionReport",
    "Fp8Linear",
    "Fp8TrainingLinear",
    "TokenRouting",
    "convert",
    "convert_for_training",
    "detect",
    "revert",
    "token_routing",
]

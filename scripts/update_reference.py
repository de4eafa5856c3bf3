"""Write the tables of keys into docs/reference/keys.md, between two markers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunetv2_vqseg.core.config import Config, markdown_table
from nnunetv2_vqseg.methods.abd import ABD
from nnunetv2_vqseg.methods.abd_cross_teaching import ABDCrossTeaching
from nnunetv2_vqseg.methods.arco import ARCO
from nnunetv2_vqseg.methods.base import BudgetConfig, CommonConfig, UnlabeledConfig, UnlabeledImagesConfig
from nnunetv2_vqseg.methods.bcp import BCP
from nnunetv2_vqseg.methods.cps import CPS
from nnunetv2_vqseg.methods.mc_net import MCNet
from nnunetv2_vqseg.methods.mean_teacher import MeanTeacherDropout
from nnunetv2_vqseg.methods.nnfiltermatch import NNFilterMatch
from nnunetv2_vqseg.methods.self_training import SelfTraining
from nnunetv2_vqseg.methods.ss_net import SSNet
from nnunetv2_vqseg.methods.strong_view import StrongViewConfig
from nnunetv2_vqseg.methods.supervised import SupervisedEMA
from nnunetv2_vqseg.methods.teacher import TeacherConfig
from nnunetv2_vqseg.methods.ua_mt import UAMT
from nnunetv2_vqseg.methods.unet import UNet
from nnunetv2_vqseg.methods.unimatch import UniMatch
from nnunetv2_vqseg.methods.unimatch_v2 import UniMatchV2
from nnunetv2_vqseg.methods.vqseg import PAPER, VQSeg

KEYS = Path(__file__).resolve().parents[1] / "docs" / "reference" / "keys.md"
BEGIN = "<!-- keys: begin (python scripts/update_reference.py) -->\n"
END = "<!-- keys: end -->"

SHARED: dict[str, type[Config]] = {
    "All methods": BudgetConfig,
    "All but stock nnU-Net (`nnUNetTrainerSupervised`)": CommonConfig,
    "All that learn from unlabelled images": UnlabeledImagesConfig,
    "All whose unlabelled loss has a weight": UnlabeledConfig,
    "All in which strong views learn hard labels": StrongViewConfig,
    "Mean teachers, UniMatch V2 and VQ-Seg": TeacherConfig,
}
METHODS: dict[str, type[Config]] = {
    "VQ-Seg": VQSeg.Config,
    "Mean teacher with feature dropout": MeanTeacherDropout.Config,
    "ARCO, second stage": ARCO.Config,
    "Bidirectional copy-paste (BCP)": BCP.Config,
    "Adaptive bidirectional displacement on BCP (ABD)": ABD.Config,
    "ABD with cross teaching": ABDCrossTeaching.Config,
    "Cross pseudo supervision (CPS)": CPS.Config,
    "SS-Net": SSNet.Config,
    "nnFilterMatch": NNFilterMatch.Config,
    "Mutual consistency (MC-Net+)": MCNet.Config,
    "Self-training": SelfTraining.Config,
    "Uncertainty-aware mean teacher (UA-MT)": UAMT.Config,
    "UniMatch (V1)": UniMatch.Config,
    "UniMatch V2": UniMatchV2.Config,
    "Supervised, with an EMA of the weights": SupervisedEMA.Config,
    "U-Net of the literature, supervised": UNet.Config,
}


def tables() -> Iterator[str]:
    """A key stands in the first table that has it, and again where a method has another default."""
    shown: dict[str, Any] = {}
    for title, config in {**SHARED, **METHODS}.items():
        keys = config.declared()
        own = [key for name, key in keys.items() if name not in shown or shown[name] != key.default]
        of_all = {name for other in SHARED.values() if issubclass(config, other) for name in other.declared()}
        others = [f"`{name}`" for name, key in keys.items() if key not in own and name not in of_all]
        yield f"## {title}"
        if own:
            yield markdown_table(own, PAPER if issubclass(VQSeg.Config, config) else None)
        if others:
            yield f"From the tables above: {', '.join(others)}."
        shown = {name: key.default for name, key in keys.items()} | shown


def with_table(text: str) -> str:
    """Text of the page with the current tables."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    content = "\n\n".join(tables())
    return f"{head}{BEGIN}\n{content}\n\n{END}{tail}"


if __name__ == "__main__":
    KEYS.write_text(with_table(KEYS.read_text(encoding="utf-8")), encoding="utf-8")

"""What the components of a row's worth mean (`Coreset.reasons`), in words, for those who read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: No quantities: the verdict of a row says them.
CODES = ("represented_by", "serves", "for_target")
#: Known of chosen rows alone, 0 of the others.
OF_CHOSEN = ("represents", "pursuit_weight", "iteration", "deflation", "step")

#: By name, over all methods; what is not here is named as it is.
MEANING: Mapping[str, str] = {
    "importance": "what the row is worth by itself",
    "coverage": "what it covers of the pool and no pick before it does",
    "covered": "similarity to the nearest chosen row",
    "duplicates": "1 where it is a duplicate of a row that may be chosen",
    "noise": "how little its prompt helps its response: about 0, not at all; far below, much",
    "neighbours": "of the way from its neighbours' loss to that of a response to another prompt",
    "cooldown": "one over how many coresets ago it was trained on",
    "represents": "rows that it represents, itself among them",
    "distance_kn": "to the row that represents it, between gradients of knowledge",
    "distance_if": "to the row that represents it, between gradients of instruction following",
    "correlation": "cosine of its gradients with the target's",
    "pursuit_weight": "its share in the sum of gradients that meets the target; 1 is the mean",
    "iteration": "of the pursuit in which it came in",
    "deflation": "the pursuit that chose it, from 1",
    "step": "of the pursuit in which it came in",
    "difficulty": "its importance by rank, from 0 to 1",
    "score": "its difficulty and its neighbours', less what earlier picks took",
    "distance": "to the nearest row chosen before it, or to the nearest of all where it was not chosen",
    "gradient_norm": "length of the loss's gradient",
    "loss": "nats a response token",
    "log_ifd": "loss with the prompt less loss without it",
    "target_cosine": "of its gradient with those of the target's rows",
    "target_similarity": "cosine of its embedding with that of the target example it serves",
    "loss_drop": "the share of its loss that is gone after a warm-up on the target alone",
    "target_rows": "1 where it is an example of the target",
    "narrow": "high where the cheap signal cuts it: distance to the target, or place in the order",
    "draw": "a random number",
}


def why(components: Mapping[str, float | None], served: Mapping[str, Any] | None) -> str:
    """In words, for a reader who has the row alone: whom it serves, and its components and their meaning."""
    parts = []
    if served is not None:
        parts.append(
            f"for example {served['id']} of {served['target']}, similarity {served['similarity']:.3g}"
        )
    for name, value in components.items():
        if value is not None and not (served and name == "target_similarity"):
            meaning = f" ({MEANING[name]})" if name in MEANING else ""
            parts.append(f"{name} {value:.3g}{meaning}")
    return "; ".join(parts)

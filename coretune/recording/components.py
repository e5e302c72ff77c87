"""What the components of a row's worth mean (`Coreset.reasons`), in words, for those who read them."""

from __future__ import annotations

from collections.abc import Mapping

#: No quantities: the verdict of a row says them.
CODES = ("stands_with",)
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
    "represents": "rows that it stands for, itself among them",
    "distance_kn": "to the row that stands for it, between gradients of knowledge",
    "distance_if": "to the row that stands for it, between gradients of instruction following",
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
    "draw": "a random number",
}

"""Who reads a latent's sequences: a language model at an endpoint or on this machine, or an oracle with labels."""

from saecore.judges.base import Judge, Plan
from saecore.judges.endpoint import Endpoint, EndpointError
from saecore.judges.language import Ask, LanguageJudge, Talk
from saecore.judges.local import Local
from saecore.judges.oracle import Oracle

__all__ = ["Ask", "Endpoint", "EndpointError", "Judge", "LanguageJudge", "Local", "Oracle", "Plan", "Talk"]

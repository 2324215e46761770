"""The sampling settings: every option with its default, its values and its help text, in one place.

The command line, the Python interface and the record of an image are all derived from :class:`Settings`. A new option
is a new field here and the code that uses it. This module imports nothing slow, so ``--help`` is fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

from ldm.util import nearest
from rdm.sampling.values import (
    AT_LEAST_0,
    CHECKPOINT,
    COMBINE,
    CORRELATION,
    COUNT,
    COUNT_OR_NONE,
    NUMBER,
    NUMBER_OR_NONE,
    OFFLOAD,
    PRECISION,
    SAMPLERS,
    SHARE,
    SHARE_ABOVE_0,
    SIDE_OR_MEMORY,
    SPACINGS,
    STOCHASTIC,
    SWITCH,
    TIMES,
    WORDS,
    Value,
    check_needed,
    one_of,
)

DIFFUSION, AUTOREGRESSION, DIFFUSERS = "diffusion", "autoregression", "diffusers"
OURS = (DIFFUSION, AUTOREGRESSION)
EVERY = (*OURS, DIFFUSERS)
IN_WORDS = {
    DIFFUSION: "a diffusion model",
    AUTOREGRESSION: "an autoregressive model",
    DIFFUSERS: "a pipeline of diffusers",
}
# The 95 % quantile of held-out real pictures, of the shipped model's embedder and database; see benchmarks/README.md.
THRESHOLD = 0.995
EDIT_SAMPLER = "ddim"  # an inversion reverses its steps, and repainting needs many steps to match the kept pixels
# Settings of what a diffusion model sees, see rdm.sampling.conditions; its sampler does not take them.
CONDITIONS = ("reference_scale", "reference_noise", "reference_agreement")
# Names of options in reports of earlier versions -> present names.
BEFORE = {"H": "height", "W": "width", "ddim_eta": "eta"}


@dataclass(frozen=True)
class Option:
    """The description of a setting, in addition to its name and default.

    Attributes:
        what: the help text.
        value: the values that the setting accepts in addition to its default.
        flags: its options on the command line; if empty, ``--`` followed by its name.
        kinds: the kinds of models that have this setting.
        command_line: further arguments of ``argparse``'s ``add_argument``.
    """

    what: str
    value: Value
    flags: tuple[str, ...] = ()
    kinds: tuple[str, ...] = EVERY
    command_line: Mapping[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> str | None:
        """The kind of model that the setting is listed under; None if both kinds of our models have it."""
        return None if set(OURS) <= set(self.kinds) else self.kinds[0]


def option(
    default: Any, what: str, value: Value, *flags: str, kinds: tuple[str, ...] = EVERY, **command_line: Any
) -> Any:
    """Returns a field of :class:`Settings`, see :class:`Option`."""
    return field(default=default, metadata={"option": Option(what, value, flags, kinds, command_line)})


class Samplable(Protocol):
    """The part of a model's interface that settings use."""

    kind: str

    def usual_options(self, sampler: str | None) -> dict[str, Any]:
        """Returns defaults for options that are None. They are for ``sampler``, or the model's default one if None."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The sampling settings. What the images show is given by a :class:`rdm.sampling.request.Request`.

    Every attribute is an option of the sampling scripts under the same name. ``--help`` and docs/sampling.md describe
    each one.

    Raises:
        ValueError: a setting does not accept its value.
    """

    height: int | None = option(
        None, "height of the images in pixels; if not given, that of training", COUNT, "--H", "--height"
    )
    width: int | None = option(
        None, "width of the images in pixels; if not given, that of training", COUNT, "--W", "--width"
    )
    scale: float | None = option(
        None,
        "scale of classifier-free guidance; 1 samples without guidance; if not given, it is 2, or for a pipeline of "
        "diffusers what the pipeline usually has",
        NUMBER,
        "--scale",
        "--guidance_scale",
    )
    text_scale: float | None = option(
        None,
        "guidance scale of the text or picture, if the model sees it and its neighbours (--use_query, or --tokens both "
        "of evaluate.py); --scale is then that of the neighbours",
        NUMBER,
        kinds=OURS,
    )
    reference_scale: float | None = option(
        None,
        "guidance scale of the neighbours' pictures, if the model sees them beside their embeddings; if not given, it "
        "is 5, or 1 with a scale of 1; 0 samples without the pictures",
        NUMBER,
        kinds=(DIFFUSION,),
    )
    reference_noise: float = option(
        0.0, "noise on the neighbours' pictures, from 0 (like these) to 1 (only their embeddings count)", SHARE,
        kinds=(DIFFUSION,),
    )  # fmt: skip
    reference_agreement: float | None = option(
        None,
        "show the picture of a found neighbour only if its outline correlates at least this much with that of the "
        "first one; of the others, the model sees the embedding alone; if not given, as the model's config says",
        CORRELATION,
        kinds=(DIFFUSION,),
        metavar="L",
    )
    rescale: float = option(
        0.0, "how far guided images are brought back to the contrast of unguided ones, from 0 to 1", SHARE,
        kinds=(DIFFUSION,),
    )  # fmt: skip
    interval: tuple[int, int] | None = option(
        None, "use guidance only at the diffusion times from FIRST to LAST", TIMES, kinds=(DIFFUSION,), nargs=2,
        metavar=("FIRST", "LAST"),
    )  # fmt: skip
    weaker: str | None = option(
        None,
        "checkpoint of a weaker model; samples are guided away from what it would do (autoguidance)",
        CHECKPOINT,
        kinds=(DIFFUSION,),
        metavar="CKPT",
    )
    weaker_scale: float = option(2.0, "scale of autoguidance; 1 samples without it", NUMBER, kinds=(DIFFUSION,))
    sampler: str | None = option(
        None, "ddim, ddpm, plms, heun, dpmpp_2m, dpmpp_2m_sde or unipc; if not given, unipc, ddim for edits, and "
        "the scheduler of a pipeline of diffusers",
        one_of(*SAMPLERS), kinds=(DIFFUSION, DIFFUSERS),
    )  # fmt: skip
    steps: int | None = option(
        None, "number of denoising steps; if not given, as many as the sampler needs", COUNT, "--steps", "--ddim_steps",
        kinds=(DIFFUSION, DIFFUSERS),
    )  # fmt: skip
    eta: float | None = option(
        None, "share of fresh noise in each step, 0 to 1; the sampler's own if not given", SHARE, "--eta", "--ddim_eta",
        kinds=(DIFFUSION, DIFFUSERS),
    )  # fmt: skip
    spacing: str = option(
        "uniform", "spacing of the steps over time: uniform, trailing, karras or quad", one_of(*SPACINGS),
        kinds=(DIFFUSION,),
    )  # fmt: skip
    temperature: float = option(
        1.0, "temperature of the codes; 0 takes the likeliest code each time", AT_LEAST_0, kinds=(AUTOREGRESSION,)
    )
    top_k: int | None = option(
        None, "choose each code among this number of likeliest codes", COUNT, kinds=(AUTOREGRESSION,)
    )
    top_p: float | None = option(
        None, "choose each code among the likeliest codes that have this probability together", SHARE_ABOVE_0,
        kinds=(AUTOREGRESSION,),
    )  # fmt: skip
    best_of: int = option(
        1, "draw N images for each one, with further seeds, and keep the one that is nearest to the query by CLIP",
        COUNT, metavar="N",
    )  # fmt: skip
    retrieve_below: float | None = option(
        None,
        "draw a draft of the text alone first, and show neighbours only for images whose draft has a lower similarity "
        "to the text by CLIP",
        NUMBER,
        metavar="SIMILARITY",
    )
    copy_threshold: float | None = option(
        THRESHOLD, "similarity to a database row from which an image is flagged as a copy of it", NUMBER_OR_NONE
    )
    reject_copies: int = option(
        0, "draw an image that is flagged as a copy again, at most TIMES times (5 times if no number is given)",
        COUNT_OR_NONE, "--reject-copies", nargs="?", const=5, metavar="TIMES",
    )  # fmt: skip
    batch_size: int | None = option(
        None,
        "number of images sampled together; if not given, 1 on a CPU (autoregressive model: 4) and 8 on a GPU",
        COUNT,
    )
    tile: int | str | None = option(
        None, "decode in tiles: their side in pixels, or the memory that they may take, such as 2GB",
        SIDE_OR_MEMORY, metavar="SIDE",
    )  # fmt: skip
    precision: str = option(
        "32", "precision of the networks, 32 or bf16, which is faster on processors that have it", PRECISION
    )
    compile: bool | str = option(
        False, "compile the networks, which takes minutes at first and then samples faster", SWITCH, kinds=OURS,
        action="store_true",
    )  # fmt: skip
    neighbour_scale: float = option(
        0.5,
        "weight of the neighbours beside the prompt, ip_adapter_scale of diffusers; 0 leaves them out",
        AT_LEAST_0,
        kinds=(DIFFUSERS,),
    )
    combine: str = option(
        "concat",
        "how several neighbours are shown: concat (the tokens of all) or mean (those of their mean embedding)",
        one_of(*COMBINE), kinds=(DIFFUSERS,),
    )  # fmt: skip
    negative_prompt: str | None = option(
        None, "a text that guidance leads away from; --negative concerns the neighbours", WORDS, kinds=(DIFFUSERS,),
        metavar="TEXT",
    )  # fmt: skip
    offload: str = option(
        "none",
        "keep the networks in the memory of the CPU until they are needed: none, model (one network at a time on the "
        "GPU) or sequential (one layer at a time, which is slow)",
        one_of(*OFFLOAD),
        kinds=(DIFFUSERS,),
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None or each.default is not None:
                option_of(each).value.check(each.name, value)
        self._check_together()

    def _check_together(self) -> None:
        """Checks that no setting contradicts another or has no effect without it."""
        check_needed(vars(self))
        unguided = self.scale == 1 and self.text_scale in (None, 1) and self.reference_scale in (None, 0, 1)
        no_pictures = (self.reference_scale == 0, "the neighbours' pictures; give another reference_scale")
        alone = {
            "reject_copies": (self.copy_threshold is None, "a copy check; give a copy_threshold"),
            "rescale": (unguided, "guidance; give another scale than 1"),
            "interval": (unguided, "guidance; give another scale than 1"),
            "reference_noise": no_pictures,
            "reference_agreement": no_pictures,
            "top_k": (self.temperature == 0, "a temperature above 0; give one"),
            "top_p": (self.temperature == 0, "a temperature above 0; give one"),
        }
        for name, (lacks, what) in alone.items():
            value = getattr(self, name)
            if lacks and value != DEFAULTS[name]:
                raise ValueError(f"got {name}={value!r} without {what}, or leave out {name}")

    @classmethod
    def of(cls, **options: Any) -> Settings:
        """Returns settings with the given options, by name. Lists, as in records, stand for tuples.

        Raises:
            ValueError: there is no option with a given name; the message names the nearest one.
        """
        known = [each.name for each in fields(cls)]
        for name in options:
            if name not in known:
                raise ValueError(
                    f"unknown sampling option '{name}'{nearest(name, known) or ', expected ' + ', '.join(known)}"
                )
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
        return cls(**values)

    @classmethod
    def of_command_line(cls, given: Mapping[str, Any]) -> Settings:
        """Returns the settings of parsed command-line options, such as ``vars(args)``; missing ones have defaults.

        Raises:
            ValueError: settings contradict each other, or an option has no effect without another that is not given.
        """
        check_needed(given)
        given = {BEFORE.get(name, name): value for name, value in given.items()}
        return cls.from_record({name: value for name, value in given.items() if name in OPTIONS})

    def for_model(self, model: Samplable) -> Settings:
        """Returns the settings completed with the model's defaults where they are None.

        Raises:
            ValueError: an option is set that only other kinds of models have, or that the sampler does not use.
        """
        for each in fields(self):
            kinds, value = option_of(each).kinds, getattr(self, each.name)
            if model.kind not in kinds and value != each.default:
                words = " or ".join(IN_WORDS[kind] for kind in kinds)
                raise ValueError(
                    f"got {each.name}={value}, which is an option of {words}, but this is {IN_WORDS[model.kind]}; "
                    "leave it out"
                )
        usual = model.usual_options(self.sampler)
        if self.scale == 1:
            usual.pop("reference_scale", None)  # no guidance at all
        if self.reference_scale == 0:
            usual.pop("reference_agreement", None)  # no pictures that agree or not
        settings = replace(self, **{name: value for name, value in usual.items() if getattr(self, name) is None})
        if settings.eta and settings.sampler not in STOCHASTIC:
            raise ValueError(
                f"got eta={settings.eta} with sampler={settings.sampler}, expected 0 for a sampler without noise; give "
                f"{', '.join(STOCHASTIC[:-1])} or {STOCHASTIC[-1]} as sampler, or leave out eta"
            )
        return settings

    @property
    def one_draw(self) -> Settings:
        """The settings that draw each image once, for images of which it is known how they came about."""
        return replace(self, best_of=1, reject_copies=0, retrieve_below=None)

    @property
    def most_draws(self) -> int:
        """How many images are drawn at most for one that is kept."""
        return self.best_of * (1 + self.reject_copies) * (1 if self.retrieve_below is None else 2)

    @property
    def guidance(self) -> float:
        """The guidance scale of completed settings; 1 is none."""
        return 1.0 if self.scale is None else self.scale

    def unguided(self, model: Samplable, where: str) -> Settings:
        """Returns the settings without guidance.

        Args:
            model: the model that samples; its usual scale asks for nothing.
            where: what is sampled without it, for the error.

        Raises:
            ValueError: a setting asks for guidance.
        """
        for name in ("scale", "text_scale", "rescale", "interval"):
            value = getattr(self, name)
            if value not in (DEFAULTS[name], model.usual_options(self.sampler).get(name), 1):
                raise ValueError(f"got {name}={value!r}, which has no effect in {where}, or leave out {name}")
        return replace(self, scale=1.0)

    def check_tokens(self, tokens: str) -> None:
        """Checks that settings have an effect with a context, see :class:`rdm.sampling.request.Request`.

        Raises:
            ValueError: a setting has none.
        """
        if self.text_scale is not None and tokens != "both":
            raise ValueError(
                f"got text_scale={self.text_scale} with tokens '{tokens}', expected tokens 'both', which are "
                "--use_query on the command line"
            )

    def model_options(self, kind: str) -> dict[str, Any]:
        """Returns the options for the ``sample`` method of a kind of model, by name."""
        return {"scale": self.scale} | {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if option_of(each).group == kind and each.name not in CONDITIONS
        }

    def record(self, kind: str) -> dict[str, Any]:
        """Returns the settings that apply to a kind of model, as JSON values."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if kind in option_of(each).kinds}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Settings:
        """Returns the settings in a record.

        Raises:
            ValueError: the record has an unknown option.
        """
        return cls.of(**record)


def option_of(setting: Any) -> Option:
    """Returns the description of a field of :class:`Settings`."""
    found: Option = setting.metadata["option"]
    return found


OPTIONS = {each.name: option_of(each) for each in fields(Settings)}
DEFAULTS = {each.name: each.default for each in fields(Settings)}

"""What a study may say: its sections as they are written, checked one by one."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    create_model,
    model_validator,
)

from lthlab import parts
from lthlab.errors import nearest
from lthlab.parts import POLICIES, Count, Data, Net, NonNegative, Part, Recipe, Share

_Stage = Literal["find_tickets", "evaluate_tickets"]
STAGES: tuple[_Stage, ...] = ("find_tickets", "evaluate_tickets")
"""What is computed, in order; each is a notebook."""


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _as_lists(value: object) -> object:
    return value if isinstance(value, list) and value and isinstance(value[0], list) else [value]


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _blank(value: object) -> object:
    """Let a name with nothing behind it ask for what it names, with its defaults; false asks for nothing."""
    return {} if value is None else None if value is False else value


def _axis(name: str) -> str:
    allowed = ["replicate", *(f"{side}.{field}" for side in ("find", "eval") for field in Recipe.model_fields)]
    if name not in allowed:
        raise ValueError(f"'{name}' is no axis; {nearest(name, allowed)}")
    return name


def _grid(model: type[Part]) -> type[BaseModel]:
    """Make a model of which every field is a list of what `model` takes; a single value is a list of one."""
    fields: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        several = name in ("milestones", "betas")
        item: Any = info.annotation
        for constraint in info.metadata:
            item = Annotated[item, constraint]
        wrapped = Annotated[list[item], BeforeValidator(_as_lists if several else _as_list), Field(min_length=1)]
        fields[name] = (wrapped | None, None)
    config = ConfigDict(extra="forbid", frozen=True)
    return create_model(f"{model.__name__}Grid", __config__=config, __doc__=model.__doc__, **fields)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Method = Literal["IMP", "OMP", "GMP"]


def _weights(name: str) -> str:
    if name in ("initial", "fresh"):
        return name
    try:
        return parts.duration(name)
    except ValueError:
        raise ValueError(f"'{name}' is not known; allowed: initial, fresh, or a step such as '8ep'") from None


class Ticket(_Model):
    """Which masks a kind of ticket is evaluated on: of iterative, one-shot or gradual magnitude pruning."""

    methods: Annotated[list[Method], BeforeValidator(_as_list), Field(min_length=1)] = ["IMP", "OMP"]


class Rewound(Ticket):
    """A ticket whose weights are rewound to an early step of the dense training, or to each of several."""

    rewind: Annotated[list[parts.Duration], BeforeValidator(_as_list), Field(min_length=1)]


class Tuned(Ticket):
    """Fine-tuning: the weights that were ranked are trained on (Han et al. 2015; Renda et al. 2020, section 2).

    Parameters
    ----------
    methods : list of str
        Masks; every round of iterative pruning is fine-tuned too.
    epochs : int
        Length of fine-tuning.
    lr : float, optional
        Learning rate; by default that of the last step of the schedule.
    """

    epochs: Count
    lr: parts.Positive | None = None


class Small(_Model):
    """Small dense networks, one for every level, of the size of a ticket of that level (SDT, Ma 2.1)."""


class Random(Ticket):
    """Random tickets: every source of masks with every source of weights.

    Parameters
    ----------
    methods : list of str
        Masks that are permuted.
    scope : list of {'layer', 'global', 'even'}
        Positions are permuted within layers, which keeps each layer's count, or over all of them; or every layer keeps
        the same share, at random, whatever the method (Morcos A.1).
    weights : list of str
        'initial', those that the dense training begins with; 'fresh', newly drawn ones; or a step of the dense
        training, such as '8ep'.
    """

    scope: Annotated[
        list[Literal["layer", "global", "even"]], BeforeValidator(_as_list), Field(min_length=1)
    ] = ["layer"]  # fmt: skip
    weights: Annotated[
        list[Annotated[str, AfterValidator(_weights)]], BeforeValidator(_as_list), Field(min_length=1)
    ] = ["initial"]  # fmt: skip


class Probe(_Model):
    """Pseudo-pruned and retrained networks (PPR, Sooner 3.3): of every one-shot mask, trained for one epoch.

    Parameters
    ----------
    lr : list of float
        Learning rates, each held constant; 0.1 and 0.01 in the paper, of which the small one tells.
    epochs : int
        Epochs; 1 in the paper.
    """

    methods: ClassVar[tuple[Method, ...]] = ("OMP",)
    lr: Annotated[list[parts.Positive], BeforeValidator(_as_list), Field(min_length=1)] = [0.1, 0.01]
    epochs: Count = 1


class Pruned(_Model):
    """The gradually pruned training itself, evaluated as it ends."""


class Tickets(_Model):
    """Tickets to evaluate, by their names in Ma.

    LT keep the initial weights, RR draw new ones, WR are rewound to a later step, LRR keep the weights that were
    ranked and train them by the whole schedule (learning rate rewinding, Renda et al. 2020), FT are fine-tuned, SDT are
    small dense networks, RT random tickets, GMP what is pruned on its way. PPR are no tickets but probes of masks.
    """

    LT: Annotated[Ticket | None, BeforeValidator(_blank)] = None
    RR: Annotated[Ticket | None, BeforeValidator(_blank)] = None
    WR: Annotated[Rewound | None, BeforeValidator(_blank)] = None
    LRR: Annotated[Ticket | None, BeforeValidator(_blank)] = None
    FT: Annotated[Tuned | None, BeforeValidator(_blank)] = None
    SDT: Annotated[Small | None, BeforeValidator(_blank)] = None
    RT: Annotated[Random | None, BeforeValidator(_blank)] = None
    GMP: Annotated[Pruned | None, BeforeValidator(_blank)] = None
    PPR: Annotated[Probe | None, BeforeValidator(_blank)] = None


class Curve(_Model):
    """How a training is pruned on its way: along a curve (Sooner eq. 6), or by a list.

    Parameters
    ----------
    start, end, every : str
        Steps at which it begins and ends, and the interval.
    shape : {'cubic', 'linear'}
        Form of the curve.
    initial : float
        Sparsity before the start.
    points : list of [step, sparsity], optional
        In place of a curve: steps, each with the sparsity from there on (Sooner Table 1).
    """

    start: parts.Duration | None = None
    end: parts.Duration | None = None
    every: parts.Duration = "1ep"
    shape: Literal["cubic", "linear"] = "cubic"
    initial: Share = 0.0
    points: list[tuple[parts.Duration, Share]] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        curve = self.model_fields_set - {"points"}
        if self.points is not None and curve:
            raise ValueError(f"points: not together with {', '.join(sorted(curve))}")
        if self.points is None and (self.start is None or self.end is None):
            raise ValueError(f"{'end' if self.start else 'start'}: missing; a curve needs start and end, a list points")
        return self


class Prune(_Model):
    """How masks are found.

    Parameters
    ----------
    levels : list of int
        Levels of the ladder at which tickets are evaluated.
    sparsities : list of float
        Further sparsities, for one-shot and gradual masks only.
    rate : float
        Share of the remaining weights that goes at every level.
    at : list of str
        Steps at which trainings are ranked, of one-shot pruning and of every round of iterative pruning; by default
        the one that `protocol.masks_from` names. What is not ranked later is trained no further.
    layer_counts : mapping, optional
        Fields of `find`, or lists of them. For each combination there are further masks, that prune of every layer as
        many weights as those do which are found with these fields (Lan Fig. 7).
    gradual : list
        Schedules of gradual pruning (GMP).
    """

    levels: Annotated[list[Annotated[Count, Field(le=parts.MAX_LEVEL)]], BeforeValidator(_as_list)] = []
    sparsities: Annotated[list[parts.Share], BeforeValidator(_as_list)] = []
    rate: Annotated[float, Strict(), Field(gt=0, lt=1, allow_inf_nan=False)] = 0.2
    at: Annotated[list[Annotated[str, AfterValidator(parts.step)]], BeforeValidator(_as_list)] = []
    layer_counts: _grid(Recipe) | None = None  # type: ignore[valid-type]
    gradual: Annotated[list[Curve], BeforeValidator(_as_list)] = []

    @property
    def asked(self) -> dict[tuple[str, int], parts.Sparsity]:
        """All sparsities that are asked for, by their place in the section."""
        ladder: list[parts.Sparsity] = [parts.Level(k, self.rate) for k in self.levels]
        others: list[parts.Sparsity] = [parts.decimal_text(share) for share in self.sparsities]
        fields = {"levels": ladder, "sparsities": others}
        return {(field, number): item for field, items in fields.items() for number, item in enumerate(items)}


class Target(_Model):
    """Another data set that tickets are transferred to: mask and body weights travel, the head is new (Morcos 3.3).

    Parameters
    ----------
    data : Data
        The data set.
    eval : mapping, optional
        Fields of the recipe that differ there, or lists of them.
    """

    data: Annotated[Data, BeforeValidator(_named)]
    eval: _grid(Recipe) | None = None  # type: ignore[valid-type]


class Protocol(_Model):
    """On what the papers differ, or are silent.

    Parameters
    ----------
    prunable : str
        Prunable set, one of `lthlab.parts.POLICIES`.
    scope : {'global', 'layer'}
        Ranking over all layers together or within each.
    denominator : {'prunable', 'all'}
        What a sparsity is a share of.
    schedule : {'resume', 'restart'}
        After rewinding to t: train the rest of the schedule (Ma appendix B) or all of it (Sooner).
    rewound_masks : {'rewound', 'initial'}
        Chain that gives rewound tickets their masks: one that rewinds to the same step, or to θ_0. In a study that
        has tickets rewound to one step and no LT, RR and RT have the masks of that chain too (Morcos).
    batchnorm : {'rewound', 'reset'}
        Whether BatchNorm's running statistics are rewound with the weights or start afresh.
    report : {'last', 'best_val', 'best_test'}
        Epoch whose accuracy counts.
    masks_from : {'last', 'best_val', 'best_test'}
        Epoch whose weights are ranked; the last in the papers, the best on the test set in the code of Ma et al.
    floor : float, optional
        Share of its weights that every layer keeps at least; none in the papers, 0.01 in the code of Ma et al.
    granularity : {'weight', 'filter'}
        What is pruned; whole filters in one shot (Lan Fig. 5), of which a sparsity is then a share.
    norm : {'l1', 'l2'}
        Norm by which filters are ranked.
    """

    prunable: str = "all_but_head"
    scope: Literal["global", "layer"] = "global"
    denominator: Literal["prunable", "all"] = "prunable"
    schedule: Literal["resume", "restart"] = "resume"
    rewound_masks: Literal["rewound", "initial"] = "rewound"
    batchnorm: Literal["rewound", "reset"] = "rewound"
    report: Literal["last", "best_val", "best_test"] = "last"
    masks_from: Literal["last", "best_val", "best_test"] = "last"
    floor: Share | None = None
    granularity: Literal["weight", "filter"] = "weight"
    norm: Literal["l1", "l2"] = "l1"

    @property
    def floor_text(self) -> str | None:
        """The floor as values have it; None without one."""
        return parts.decimal_text(self.floor) if self.floor else None

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.prunable not in POLICIES:
            raise ValueError(f"prunable: policy '{self.prunable}' is not known; {nearest(self.prunable, POLICIES)}")
        return self


_Steps = Annotated[list[parts.Duration], BeforeValidator(_as_list)]
_Trained = Literal["dense", "LT", "RR", "WR", "LRR", "FT", "RT", "SDT", "GMP"]
_Of = Annotated[list[_Trained], BeforeValidator(_as_list), Field(min_length=1)]
READINGS = ("own", "dense", "trained", "permuted")
"""What the correlation indicator compares (see `Correlation`)."""


class Correlation(_Model):
    """The correlation indicator R_p between two sets of weights (Ma appendix G), which Ma describe in several ways.

    Parameters
    ----------
    p : list of float
        Shares of each layer's weights that count as large, in (0, 1].
    of : list of str
        Which trainings; by default dense ones and those of LT and RR, as far as the study has them.
    partner : list of {'own', 'dense', 'trained', 'permuted'}
        'own': initial weights of a ticket and its own trained ones (appendix G; section 3.1, first sentence). 'dense':
        its initial weights and those of the dense training that its mask was found with, under that mask (section 3.1,
        second sentence). 'trained': its trained weights and those of the dense training (caption of Fig. 6).
        'permuted', a control: as 'dense', under the mask permuted within layers, which was not chosen by magnitude;
        not of RR, whose weights no dense training begins with. Dense trainings have 'own' alone.
    at : list of str
        Steps of the trained weights that initial ones are compared with.
    """

    p: Annotated[
        list[Annotated[float, Strict(), Field(gt=0, le=1, allow_inf_nan=False)]],
        BeforeValidator(_as_list),
        Field(min_length=1),
    ] = [0.1]  # fmt: skip
    of: Annotated[list[Literal["dense", "LT", "RR", "WR"]], BeforeValidator(_as_list)] = ["dense", "LT", "RR"]
    partner: Annotated[
        list[Literal["own", "dense", "trained", "permuted"]], BeforeValidator(_as_list), Field(min_length=1)
    ] = ["own"]  # fmt: skip
    at: Annotated[
        list[Annotated[str, AfterValidator(parts.step)]], BeforeValidator(_as_list), Field(min_length=1)
    ] = ["last"]  # fmt: skip


class Spread(_Model):
    """Standard deviation of the weights of each layer while dense networks are trained (W_std, Sooner Fig. 2a).

    Parameters
    ----------
    at : list of str
        Steps; every epoch from the initial weights on by default. The state at each is kept.
    """

    at: _Steps = []


class Distances(_Model):
    """Hamming distances between one-shot masks that were ranked at the steps of `prune.at` (Sooner Fig. 3)."""


class Memorization(_Model):
    """How many random labels pruned networks learn (Sooner Fig. 5, Table 1).

    Every one-shot mask, with the weights that it was ranked on, is trained on images with random labels, not augmented,
    at a constant rate. So is every gradual mask of a list, beside one-shot masks of the same steps and sparsities, and
    the dense network as it ends. What counts is the accuracy on these images.

    Parameters
    ----------
    train_sizes : list of int
        Numbers of images.
    epochs : int
        Epochs; the paper does not say how many.
    lr : float, optional
        Learning rate; that of the finding recipe by default. The paper does not say.
    """

    train_sizes: Annotated[list[Count], BeforeValidator(_as_list), Field(min_length=1)]
    epochs: Count = 50
    lr: parts.Positive | None = None


class _OfStates(_Model):
    """An analysis of trained networks.

    Parameters
    ----------
    of : list of str
        Which trainings: dense ones and tickets.
    methods : list of str
        Of tickets on which masks; all by default.
    levels : list of int
        Of tickets at which levels; the last by default.
    replicates : int, optional
        Of how many replicates; all by default.
    images : int
        How many images the loss is a mean over, at most as many as there are.
    split : {'train', 'test'}
        Which images.
    """

    of: _Of = ["dense"]
    methods: Annotated[list[Method], BeforeValidator(_as_list), Field(min_length=1)] = ["IMP", "OMP", "GMP"]
    levels: Annotated[list[Count], BeforeValidator(_as_list)] = []
    replicates: Count | None = None
    images: Count = 500
    split: Literal["train", "test"] = "train"


class _Evaluated(_OfStates):
    """An analysis that evaluates networks at weights that were not trained.

    Parameters
    ----------
    batchnorm : {'fixed', 'recompute'}
        Running statistics of BatchNorm: as they were, or those of the weights at each point on the same images.
    """

    batchnorm: Literal["fixed", "recompute"] = "recompute"


class Surface(_Evaluated):
    """Loss on planes through trained weights, with the way that training took (Ma Figs. 4 and 5; Li et al. 2018).

    Parameters
    ----------
    planes : list of {'pca', 'random'}
        Spanned by the main components of the trajectory, or by filter-normalised random directions.
    points : int
        Number of points on each side.
    span : float
        Half the side of random planes, in norms of the filters.
    parameters : {'weights', 'all'}
        What directions cover: weights only, or biases and BatchNorm's parameters too.
    snapshots : int
        States of the trajectory, spread evenly, of which planes 'pca' are made; 3 or more.
    replicates : int
        Of how many replicates.
    """

    planes: Annotated[
        list[Literal["pca", "random"]], BeforeValidator(_as_list), Field(min_length=1)
    ] = ["pca", "random"]  # fmt: skip
    points: Annotated[Count, Field(ge=3)] = 25
    span: parts.Positive = 1.0
    parameters: Literal["weights", "all"] = "weights"
    snapshots: Annotated[Count, Field(ge=3)] = 11
    replicates: Count | None = 1


class Sharpness(_Evaluated):
    """Mean increase of the loss at a distance that goes by the norms of filters, so that it has no scale.

    Parameters
    ----------
    radius : float
        The distance, in norms of the filters.
    directions : int
        Number of random directions; either side of each is evaluated.
    """

    radius: parts.Positive = 0.1
    directions: Count = 10


class Eigenvalue(_OfStates):
    """Largest eigenvalue of the Hessian of the loss over unpruned weights, by power iteration.

    Parameters
    ----------
    iterations : int
        Most iterations.
    tolerance : float
        Relative error at which they end.
    """

    iterations: Count = 100
    tolerance: parts.Positive = 0.001


class Barrier(_Evaluated):
    """Loss on straight lines: from initial to trained weights, and between trainings that differ in their order alone.

    Parameters
    ----------
    at : list of str
        Steps from which dense networks are trained on twice, with two orders of the images (instability, Frankle et al.
        2020); tickets then are too, from where they start. None by default.
    points : int
        Number of points on a line.
    """

    at: _Steps = []
    points: Annotated[Count, Field(ge=3)] = 11


class Measures(_Model):
    """Analyses of weights, masks and losses."""

    correlation_indicator: Annotated[Correlation | None, BeforeValidator(_blank)] = None
    weight_std: Annotated[Spread | None, BeforeValidator(_blank)] = None
    hamming: Annotated[Distances | None, BeforeValidator(_blank)] = None
    memorization: Annotated[Memorization | None, BeforeValidator(_blank)] = None
    loss_surface: Annotated[Surface | None, BeforeValidator(_blank)] = None
    sharpness: Annotated[Sharpness | None, BeforeValidator(_blank)] = None
    hessian_eigenvalue: Annotated[Eigenvalue | None, BeforeValidator(_blank)] = None
    loss_barrier: Annotated[Barrier | None, BeforeValidator(_blank)] = None


class Verdicts(_Model):
    """How verdicts are reached, as in `lthlab.verdicts.judge`; what is not given is the paper's for the data set.

    Parameters
    ----------
    reading : {'literal', 'same_lr'}
        Whether two conditions may hold at different learning rates.
    tolerance, gap, sdt_gap : float
        Points of similar accuracy, and of clear gaps to RR and SDT.
    min_sparsity : float
        Smallest sparsity that is not trivial.
    epochs : int
        Epochs that suffice.
    """

    reading: Literal["literal", "same_lr"] = "literal"
    tolerance: NonNegative | None = None
    gap: NonNegative = 0.5
    sdt_gap: NonNegative | None = None
    min_sparsity: Share = 0.6
    epochs: Count | None = None


def _report(name: str) -> str:
    if name == "index":
        raise ValueError("'index' is the page that lists the others; allowed: any other name")
    return name


_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
_Names = Annotated[list[_Name], BeforeValidator(_as_list)]


class Study(_Model):
    """A study as it is written; of several panels, what is said of one of them."""

    name: _Name
    title: str = ""
    presets: _Names = []
    stages: Annotated[list[_Stage], BeforeValidator(_as_list), Field(min_length=1)] = list(STAGES)
    panel_by: Annotated[list[Annotated[str, AfterValidator(_axis)]], BeforeValidator(_as_list)] = []
    reports: Annotated[list[Annotated[_Name, AfterValidator(_report)]], BeforeValidator(_as_list)] = []
    verdicts: Verdicts = Verdicts()
    net: Annotated[Net, BeforeValidator(_named)]
    data: Annotated[Data, BeforeValidator(_named)]
    replicates: Annotated[Count, Field(le=10_000)] = 1
    find: _grid(Recipe)  # type: ignore[valid-type]
    eval: _grid(Recipe) | None = None  # type: ignore[valid-type]
    prune: Prune = Prune()
    targets: Annotated[list[Target], BeforeValidator(_as_list)] = []
    tickets: Tickets = Tickets()
    protocol: Protocol = Protocol()
    measures: Measures = Measures()
    panels: list[dict[str, Any]] = []
    mini: dict[str, Any] = {}


OF_PANEL = ("net", "data", "replicates", "find", "eval", "prune", "targets", "tickets", "protocol", "measures")
"""Sections that a panel may have of its own."""

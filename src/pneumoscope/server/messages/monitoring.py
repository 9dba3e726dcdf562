"""The JSON messages of monitoring."""

from __future__ import annotations

from pydantic import Field

from pneumoscope.server.messages.predictions import Answer, Moment, Query


class MonitoringQuery(Query):
    """How many days to summarise, today included."""

    days: int = Field(default=30, ge=1, le=3650)


class Share(Answer):
    """A share of images with its 95% interval (Wilson 1927); all null if there are none."""

    value: float | None
    low: float | None
    high: float | None
    n: int = Field(description="How many images it is a share of.")


class Shares(Answer):
    """Shares of images. Only the latest prediction of each image counts."""

    positive: Share = Field(description="Of the images in distribution.")
    uncertain: Share
    out_of_distribution: Share


class Quantiles(Answer):
    """How OOD scores are distributed."""

    p05: float
    median: float
    p95: float


class Comparison(Answer):
    """How values differ from those of the validation images."""

    images: int
    min_images: int = Field(description="With fewer, no drift is given.")
    psi: float | None = Field(description="Population stability index; above 0.25 counts as a change.")
    psi_by_chance: float | None = Field(description="What it stays below 95 times in 100 if nothing has changed.")
    ks_distance: float | None = Field(description="The largest distance of the two distributions.")


class Drift(Comparison):
    """How the probabilities differ from those of the validation images."""

    current: list[int] = Field(description="Images by tenths of the probability.")
    validation: list[int] = Field(description="Validation images by tenths of the probability.")


class Part(Answer):
    """A part of the period. Intervals are of each part alone: they are not adjusted for looking at many parts."""

    first_day: str = Field(description="UTC.")
    last_day: str
    images: int
    shares: Shares


class Group(Answer):
    """Images that have something in common."""

    name: str = Field(description="`unknown` where the value is missing, `others` for the rarest.")
    images: int
    shares: Shares
    agreement: Share = Field(description="How often the latest reviews of these images agree.")


class Groups(Answer):
    """Images by what is known about them."""

    view: list[Group]
    age: list[Group] = Field(description="In years.")
    sex: list[Group]
    model_group: list[Group] = Field(description="The group of the model that decided; `none` where none did.")
    format: list[Group] = Field(description="Of the file.")


class Discordant(Answer):
    """An image on which two models decide differently."""

    prediction_id: str
    created_at: Moment = Field(description="UTC.")
    first: str = Field(description="The decision of the model that is served.")
    second: str = Field(description="That of the second model.")
    first_probability: float | None = Field(description="Of the positive class; null if out of distribution.")
    second_probability: float | None
    label: str | None = Field(description="The class that the latest review names; null if none does.")


class ReviewedDiscordance(Answer):
    """Images on which two models decide differently and a reviewer names a class, and whose decision is that class.

    Reviewers have seen the decision of the model that answered, which favours it.
    """

    images: int
    first_matches: int
    second_matches: int


class ModelComparison(Answer):
    """How a second model differs from the one that is served, on the images that both saw."""

    name: str
    fingerprint: str
    canary: float = Field(description="Share of the images that the second model answers for.")
    images: int = Field(description="Different images that both models saw.")
    answered_by_second: int = Field(description="How many of them the second model answered for.")
    same_decision: Share
    same_label: Share
    difference_p05: float | None = Field(description="Of the positive class's probability, second minus first.")
    difference_median: float | None
    difference_p95: float | None
    mean_absolute_difference: float | None
    discordant: int = Field(description="Images with different decisions.")
    reviewed: ReviewedDiscordance
    latest: list[Discordant] = Field(description="At most 50 of the discordant images, the newest first.")


class MonitoringMessage(Answer):
    """Volume, decisions, drift, and agreement with reviewers."""

    days: int
    predictions: int = Field(description="Of all models.")
    summarised: int = Field(description="The latest of them, at most 50,000.")
    summarised_reviews: int = Field(description="The latest reviews of the period's predictions, at most 50,000.")
    per_day: dict[str, int] = Field(description="Predictions by day (UTC); days without any are left out.")
    of_this_model: int = Field(description="How many of the summarised predictions are of the model that is served.")
    images: int = Field(description="Different images among them.")
    shares: Shares
    ood_score: Quantiles | None = Field(description="Null if the model gives none.")
    drift: Drift | None = Field(description="Null if the model has no validation probabilities.")
    ood_drift: Comparison | None = Field(description="The same of the OOD scores; null if the model gives none.")
    unreadable: Share = Field(description="Files that could not be read, of all that were to be stored.")
    unreadable_reasons: dict[str, int] = Field(description="How many files by the code of their problem.")
    agreement: dict[str, Share] = Field(
        description="How often the latest reviews agree: of `all` images, and by decision."
    )
    series: list[Part] = Field(description="By day, or by week if there are more than 31; the oldest first.")
    min_pooled: int = Field(description="Days or weeks with fewer images are pooled with others.")
    groups: Groups
    second_model: ModelComparison | None = Field(default=None, description="Null if there is none.")


class CoefficientMessage(Answer):
    """A coefficient of agreement with its 95% interval by patient; null where it is undefined."""

    value: float | None
    low: float | None
    high: float | None
    images: int = Field(description="How many images it is computed from.")
    agreed: float | None = Field(description="The share of equal pairs of ratings, not corrected for chance.")


class ReaderMessage(Answer):
    """Somebody who has reviewed."""

    name: str
    verified: bool = Field(description="Whether the name comes from a login or a token.")
    images: int = Field(description="How many images they have rated.")


class PairMessage(CoefficientMessage):
    """Cohen's kappa of two readers."""

    first: str
    second: str


class ReaderAgreementMessage(Answer):
    """How far readers agree with each other; of each reader and image, the latest rating counts.

    A rating is the class that a reader sees, or `cannot_tell`.
    """

    days: int
    reviews: int = Field(description="How many were read: the latest of the period's predictions, at most 50,000.")
    readers: list[ReaderMessage] = Field(description="Those who have rated most come first.")
    unnamed: int = Field(description="Ratings without a name, which do not count.")
    pairs: list[PairMessage] = Field(description="Cohen's kappa, of the eight readers who have rated most.")
    fleiss: CoefficientMessage | None = Field(
        description="Fleiss' kappa of the images that all of three or more readers have rated."
    )
    alpha: CoefficientMessage = Field(description="Krippendorff's alpha (nominal) of all images with two ratings.")

"""Options of ``mpisign train`` that do not go together, found before anything is trained."""

from __future__ import annotations

from mpisign.experiments import compression
from mpisign.experiments.data import Dataset
from mpisign.experiments.errors import SettingsError
from mpisign.experiments.settings import Settings
from mpisign.experiments.variants import VARIANTS


def check(settings: Settings, size: int, dataset: Dataset) -> None:
    """Raises SettingsError for what ``size`` ranks cannot do, or not with ``dataset``."""
    if settings.adversaries >= size and settings.adversaries:
        raise SettingsError(
            f"--adversaries must be below the number of ranks, got {settings.adversaries} of {size}"
        )
    for name in settings.ways:
        lacking = VARIANTS[name].lacks(settings)
        if lacking:
            raise SettingsError(f"{name} does not go with {lacking}")
    _check_groups(settings, size)
    _check_compressor(settings, size)
    if settings.adversaries:
        from mpisign import attacks

        try:
            attack = attacks.by_name(settings.attack, settings.adversaries)
            attack.check(size - settings.adversaries)
            attack.batch(dataset.train_images[:1], dataset.train_labels[:1])
        except ValueError as error:
            raise SettingsError(f"--attack {settings.attack}: {error}") from error
    if settings.byzantine_f:
        _check_owners(settings, size)


def _check_groups(settings: Settings, size: int) -> None:
    r = settings.detox
    if r is None:
        for option in ("placement", "order", "reshuffle_every"):
            if getattr(settings, option) != getattr(Settings, option):
                raise SettingsError(f"--{option.replace('_', '-')} needs --detox: it is of groups")
        if settings.suspects:
            raise SettingsError("--suspects needs --detox: ranks are compared in groups")
    elif r % 2 == 0:
        raise SettingsError(f"--detox must be odd, so that no group ties, got {r}: take {r + 1}")
    elif size < 2 * r > 2:
        raise SettingsError(
            f"--detox {r} needs {2 * r} ranks at least, so that there are groups to vote, "
            f"got {size}"
        )


def _check_compressor(settings: Settings, size: int) -> None:
    option = f"--compression {settings.compression}"
    if settings.rule is not None:
        if settings.compression != Settings.compression:
            raise SettingsError(
                f"--rule {settings.rule} is of gradients in full precision: leave out {option}"
            )
        option = f"--rule {settings.rule} with f={settings.faulty_rows()} (--rule-f)"
    elif settings.rule_f is not None:
        raise SettingsError("--rule-f needs --rule")
    try:
        compression.compressor(settings.cell(True, size))
        if settings.rule is not None:
            from mpisign import robust

            rule = robust.by_name(settings.rule, settings.faulty_rows())
            rule.check(size // (settings.detox or 1))
    except ValueError as error:
        cause: BaseException = error
        while isinstance(cause, SettingsError) and cause.__cause__ is not None:
            cause = cause.__cause__
        raise SettingsError(f"{option}: {cause}") from error


def _check_owners(settings: Settings, size: int) -> None:
    f = settings.byzantine_f
    aggregate = compression.compressor(settings.cell(True, size)).aggregate
    if settings.rule is not None or aggregate != "vote":
        sent = settings.rule or settings.compression
        raise SettingsError(f"--byzantine-f is of votes: {sent} takes none")
    if settings.algorithm not in ("auto", "alltoall"):
        raise SettingsError(
            f"--byzantine-f needs --algorithm alltoall or auto, got {settings.algorithm}"
        )
    if 2 * f + 1 > size:
        raise SettingsError(f"--byzantine-f {f} needs {2 * f + 1} ranks at least, got {size}")

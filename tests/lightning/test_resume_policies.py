"""What may be otherwise as a fit goes on from a checkpoint: the same as in a plain loop."""

import pytest
import torch
from support.lightning_package import Callback, LightningModule, SingleDeviceStrategy
from support.lightning_runs import trainer_of
from support.resume_cases import BASE, CASES, OTHERS
from support.resuming import UPDATES, Net, adapted_by_hand, batches, loss_of, moments, started
from support.tensors import same_weights
from torch.utils.data import DataLoader, Dataset

from optimplug import ArgumentError, Horizon, StateError
from optimplug.callbacks.lightning import RecipeCallback
from optimplug.lightning import RecipeMixin, configure_optimizers

pytestmark = pytest.mark.filterwarnings("ignore:.*is not resumable")


class Batches(Dataset):
    def __init__(self, start=0, stop=2 * UPDATES):
        self.batches = batches()[start:stop]

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, i):
        return self.batches[i]


class Bare(LightningModule):
    """Trains Net; says nothing of optimizers."""

    def __init__(self):
        super().__init__()
        self.model = Net()

    def training_step(self, batch):
        return loss_of(self.model, batch)

    def train_dataloader(self):
        # Three epochs of four batches, of which a checkpoint is saved after the sixth.
        epoch = self.trainer.current_epoch
        return DataLoader(Batches(4 * epoch, 4 * epoch + 4), batch_size=None)


class Recipes(RecipeMixin, Bare):
    def __init__(self, recipe, resume=None):
        super().__init__()
        self.recipe, self.resume = recipe, resume


class Stock(Bare):
    """With torch's own optimizer, and its scheduler stepped by epochs."""

    def __init__(self, named=False, scheduled=True):
        super().__init__()
        self.named, self.scheduled = named, scheduled

    def configure_optimizers(self):
        params = self.model.named_parameters() if self.named else self.parameters()
        optimizer = torch.optim.AdamW(params, lr=0.1)
        if not self.scheduled:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class SaveAfter(Callback):
    def __init__(self, folder, stop):
        self.folder, self.stop = folder, stop

    def on_train_epoch_end(self, trainer, module):
        if trainer.global_step == self.stop:
            trainer.save_checkpoint(self.folder / "kept.ckpt")


STOP = 8
RUN = {"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1}


def fit(folder, module, *callbacks, ckpt_path=None, **changes):
    trainer = trainer_of(folder, *callbacks, **{**RUN, **changes})
    trainer.fit(module, ckpt_path=ckpt_path)
    return module


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    fit(folder, Recipes(BASE), SaveAfter(folder, STOP))
    return folder / "kept.ckpt"


def stock(folder, **settings):
    fit(folder, Stock(**settings), SaveAfter(folder, STOP))
    return folder / "kept.ckpt"


# Without a trainer the same cases are tested of the run itself: a third of them is quick here.
SOME = [pytest.param(name, marks=pytest.mark.slow if i % 3 else ()) for i, name in enumerate(CASES)]


@pytest.mark.parametrize("name", SOME)
def test_exact_refuses_what_is_otherwise(tmp_path, saved, name):
    module = Recipes(CASES[name].recipe)
    before = {key: value.clone() for key, value in Net().state_dict().items()}
    with pytest.raises(StateError, match=CASES[name].row):
        fit(tmp_path, module, ckpt_path=saved)
    assert before.keys() == module.model.state_dict().keys()
    assert all(p.requires_grad for p in module.parameters())  # the run is closed


@pytest.mark.parametrize("name", SOME)
def test_adapt_is_what_a_plain_loop_does(tmp_path, saved, name, caplog):
    module = fit(tmp_path, Recipes(CASES[name].recipe, "adapt"), ckpt_path=saved)
    told = [r for r in caplog.records if "resumed at update 8 (adapt)" in r.getMessage()]
    assert len(told) == 1
    by_hand = adapted_by_hand(BASE, CASES[name].recipe, stop=STOP)
    assert same_weights(module.model, by_hand.model)


def test_an_unchanged_one_is_exact(tmp_path, saved):
    whole = fit(tmp_path, Recipes(BASE))
    assert same_weights(fit(tmp_path, Recipes(BASE), ckpt_path=saved).model, whole.model)


@pytest.mark.parametrize("policy", ["exact", "adapt"])
@pytest.mark.parametrize("name", OTHERS)
def test_another_optimizers_state_is_refused(tmp_path, saved, name, policy):
    with pytest.raises(StateError, match="state of AdamW, which means nothing to"):
        fit(tmp_path, Recipes(OTHERS[name], policy), ckpt_path=saved)


@pytest.mark.parametrize("name", ["lr", *OTHERS])
def test_weights_begins_anew_over_the_updates_that_are_left(tmp_path, saved, name):
    recipe = (
        {**BASE, "schedule": "linear"} if name == "lr" else {**OTHERS[name], "schedule": "linear"}
    )
    seen = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            seen.append(optimizer.param_groups[0]["lr"] / optimizer.param_groups[0]["initial_lr"])
            assert trainer.optimizers[0].state == {} or len(seen) > 1

    fit(tmp_path, Recipes(recipe, "weights"), Rates(), ckpt_path=saved)
    assert seen == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_a_longer_run(tmp_path):
    short = {"max_epochs": 2}
    fit(tmp_path, Recipes(BASE), SaveAfter(tmp_path, 4), **short)
    checkpoint = tmp_path / "kept.ckpt"
    with pytest.raises(StateError, match=r"horizon +8 updates, 4 an epoch +12 updates, 4 an epoch"):
        fit(tmp_path, Recipes(BASE), ckpt_path=checkpoint)
    module = fit(tmp_path, Recipes(BASE, "adapt"), ckpt_path=checkpoint)
    by_hand = adapted_by_hand(BASE, BASE, stop=4, horizon=Horizon(8, 4), new=Horizon(12, 4))
    assert same_weights(module.model, by_hand.model)


@pytest.mark.parametrize("settings", [{}, {"named": True}, {"scheduled": False}], ids=str)
def test_a_stock_run_goes_on_with_its_moments(tmp_path, settings):
    checkpoint = stock(tmp_path, **settings)
    with pytest.raises(StateError, match="resume='adapt'"):
        fit(tmp_path, Recipes(BASE), ckpt_path=checkpoint)

    class AtTheStart(Callback):
        def on_train_start(self, trainer, module):
            (optimizer,) = trainer.optimizers
            self.moments = moments(optimizer)
            self.epoch = trainer.lr_scheduler_configs[0].scheduler.last_epoch
            self.rates = [group["lr"] for group in optimizer.param_groups]
            self.decay = [group["weight_decay"] for group in optimizer.param_groups]

    start = AtTheStart()
    fit(tmp_path, Recipes(BASE, "adapt"), start, ckpt_path=checkpoint)
    state = torch.load(checkpoint, weights_only=True)["optimizer_states"][0]["state"]
    names = [name for name, _ in Net().named_parameters()]
    assert sorted(start.moments) == sorted(names)
    for number, name in enumerate(names):
        for key, value in state[number].items():
            assert torch.equal(start.moments[name][key], torch.as_tensor(value)), (name, key)
    assert start.epoch == STOP
    assert start.decay == [0.01, 0.1]
    fresh = adapted_by_hand(BASE, BASE, stop=STOP)
    fresh.scheduler.go_to(STOP)
    assert start.rates == fresh.scheduler.get_last_lr()


def test_every_way_takes_a_policy(tmp_path, saved):
    recipe = CASES["lr"].recipe
    by_hand = adapted_by_hand(BASE, recipe, stop=STOP)

    class Calls(Bare):
        def configure_optimizers(self):
            return configure_optimizers(self, recipe, resume="adapt")

    ways = [
        (Calls(), ()),
        (Stock(), (RecipeCallback(recipe, "adapt"),)),
        (Recipes({**recipe, "resume": "adapt"}), ()),
    ]
    for module, callbacks in ways:
        fit(tmp_path, module, *callbacks, ckpt_path=saved)
        assert same_weights(module.model, by_hand.model)


class Rates(Callback):
    """Keeps the rate of every update, and saves a checkpoint after the tenth."""

    def __init__(self, folder):
        self.folder, self.rates = folder, []

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == STOP + 2:
            trainer.save_checkpoint(self.folder / "again.ckpt")

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.rates.append([group["lr"] for group in optimizer.param_groups])


def test_every_way_takes_a_rewarm_which_survives_another_resume(tmp_path, saved):
    recipe = {**CASES["lr"].recipe, "schedule": []}
    climbs = [pytest.approx([lr, lr], abs=1e-15) for lr in rewarmed()]

    class Calls(Bare):
        def configure_optimizers(self):
            return configure_optimizers(self, recipe, resume="adapt", rewarm="25%")

    mixin = Recipes(recipe, "adapt")
    mixin.rewarm = 3
    ways = [
        (Calls(), ()),
        (mixin, ()),
        (Stock(), (RecipeCallback(recipe, "adapt", "3 steps"),)),
        (Recipes({**recipe, "resume": {"policy": "adapt", "rewarm": "0.75 epochs"}}), ()),
    ]
    for module, callbacks in ways:
        rates, again = Rates(tmp_path), Rates(tmp_path)
        fit(tmp_path, module, rates, *callbacks, ckpt_path=saved)
        assert rates.rates == climbs
        fit(tmp_path, Recipes(recipe), again, ckpt_path=tmp_path / "again.ckpt")
        assert again.rates == rates.rates[2:]


def rewarmed():
    """Return the rates of the updates after the eighth, on the way to 0.02."""
    was = started(BASE).scheduler.rates(STOP)[0]
    return [was + (0.02 - was) * i / 3 for i in range(3)] + [0.02]


def test_a_policy_that_there_is_not():
    with pytest.raises(ArgumentError, match="resume must be one of"):
        RecipeCallback(BASE, "exactly")
    with pytest.raises(ArgumentError, match="rewarm: must be a number of steps"):
        RecipeCallback(BASE, "adapt", "2 parts")
    with pytest.raises(ArgumentError, match="rewarm='2%' is for resume='adapt'"):
        RecipeCallback(BASE, rewarm="2%")


def test_two_optimizers_each_keep_their_own(tmp_path):
    class Two(Bare):
        automatic_optimization = False

        def __init__(self, recipe, resume=None):
            super().__init__()
            self.other, self.given, self.resume = Net(), recipe, resume

        def configure_optimizers(self):
            (own,), (config,) = configure_optimizers(self, self.given, self.resume)
            other = torch.optim.Adagrad([torch.nn.Parameter(torch.ones(2))], lr=0.3)
            return [other, own], [config]

        def training_step(self, batch):
            other, own = self.optimizers()
            for optimizer in (other, own):
                optimizer.zero_grad()
            loss = loss_of(self.model, batch) + 0 * loss_of(self.other, batch)
            loss.backward()
            own.step()
            self.lr_schedulers().step()

    def recipe_of(lr):
        optimizer = {"name": "AdamW", "lr": lr}
        return {"optimizer": optimizer, "groups": [{"match": "other.*", "freeze": True}]}

    fit(tmp_path, Two(recipe_of(0.1)), SaveAfter(tmp_path, STOP))
    with pytest.raises(StateError, match=r"lr of .* +0\.1 +0\.2 +adapt"):
        fit(tmp_path, Two(recipe_of(0.2)), ckpt_path=tmp_path / "kept.ckpt")
    module = Two(recipe_of(0.2), "adapt")
    fit(tmp_path, module, ckpt_path=tmp_path / "kept.ckpt")
    other, own = module.trainer.optimizers
    assert {group["lr"] for group in own.param_groups} == {0.2}
    assert [group["lr"] for group in other.param_groups] == [0.3]


def test_a_strategy_that_reads_late_is_adapted_as_well(tmp_path, saved):
    class Late(SingleDeviceStrategy):
        restore_checkpoint_after_setup = True

    recipe = CASES["cut"].recipe
    settings = {"strategy": Late(device="cpu"), "ckpt_path": saved}
    with pytest.raises(StateError, match=CASES["cut"].row):
        fit(tmp_path, Recipes(recipe), **settings)
    module = fit(tmp_path, Recipes(recipe, "adapt"), **{**settings, "strategy": Late(device="cpu")})
    assert same_weights(module.model, adapted_by_hand(BASE, recipe, stop=STOP).model)


def test_what_the_strategy_has_loaded_keeps_no_settings(tmp_path, saved):
    class Loading(SingleDeviceStrategy):
        """As those that shard do, it loads the optimizer by itself."""

        restore_checkpoint_after_setup = True
        lightning_restore_optimizer = False

        def load_checkpoint(self, path, **how):  # weights_only, since Lightning 2.6
            checkpoint = super().load_checkpoint(path, **how)
            (state,) = checkpoint.pop("optimizer_states")
            self.optimizers[0].load_state_dict(state)
            return checkpoint

    recipe = CASES["lr"].recipe
    with pytest.raises(StateError, match=CASES["lr"].row):
        fit(tmp_path, Recipes(recipe), ckpt_path=saved, strategy=Loading(device="cpu"))
    module = Recipes(recipe, "adapt")
    fit(tmp_path, module, ckpt_path=saved, strategy=Loading(device="cpu"))
    assert same_weights(module.model, adapted_by_hand(BASE, recipe, stop=STOP).model)

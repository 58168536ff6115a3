"""The classifier of noised images: labels of captions, its loss, and the gradient that guides."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax.core.checks import UserError
from unclip_jax.diffusion.gradient_guidance import gradient_of
from unclip_jax.objectives import gaussian
from unclip_jax.stages import classifier

CONFIG = tiny.experiment("classifier").model


@pytest.fixture(scope="module")
def case():
    stage = classifier.make(CONFIG)
    return stage, tiny.random_params(stage), tiny.random_batch(stage, 4)


def test_the_class_is_the_one_that_the_caption_names_first():
    labels = CONFIG.labels(["three pink stars", "A Ring above a circle", "a crossing of a heart"])
    assert [CONFIG.classes[i].split("|")[0] for i in labels] == ["star", "ring", "heart"]
    with pytest.raises(UserError, match="caption 'a cat' names no class of the classifier .circle"):
        CONFIG.labels(["a circle", "a cat"])
    numbers = dataclasses.replace(CONFIG, classes=("1", "10", "2", "3", "4", "5", "6", "7"))
    assert numbers.labels(["10", "1"]).tolist() == [1, 0]
    words = ("ice", "ice cream|cream", "2", "3", "4", "5", "6", "7")
    foods = dataclasses.replace(CONFIG, classes=words)
    assert foods.labels(["Ice cream", "ice with cream", "cream on ice"]).tolist() == [1, 0, 1]


def test_the_loss_is_the_cross_entropy_on_images_noised_along_the_chain(case):
    stage, params, batch = case
    key = jax.random.key(1)
    value, metrics = jax.jit(stage.loss)(params, batch, key)
    noised = gaussian.noise_batch(
        CONFIG.diffusion.chain(), jnp.asarray(batch["image"]), key=classifier.rng.fold(key, "draw")
    )
    assert len(set(noised.t.tolist())) > 1
    module = classifier.Classifier(CONFIG.model)
    logits = np.asarray(module.apply({"params": params}, noised.x_t, noised.t), np.float64)
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.mean(np.log(chances[np.arange(4), batch["label"]]))
    assert float(value) == pytest.approx(expected, abs=1e-5)
    assert float(metrics["accuracy"]) == np.mean(logits.argmax(1) == batch["label"])


def test_evaluation_reports_accuracy_at_fixed_noise_levels(case):
    stage, params, batch = case
    metrics = jax.jit(stage.evaluate)(params, batch, jax.random.key(0))
    levels = {f"accuracy_t{level:03d}" for level in (0, 250, 500, 750)}
    assert metrics.keys() == {"loss", *levels}


def test_the_gradient_is_that_of_the_label_of_each_row_alone(case):
    _, params, batch = case
    x, t = jnp.asarray(batch["image"][:2]), jnp.array([10, 500])
    labels = jnp.array([1, 3])

    @jax.jit
    def both(x, t, labels):
        log_probability = classifier.log_probability(CONFIG, params, labels)
        return log_probability(x, t), gradient_of(log_probability)(x, t)

    base, gradient = both(x, t, labels)
    step = 1e-2 * gradient / jnp.linalg.norm(gradient.reshape(2, -1), axis=1)[:, None, None, None]
    up, down = both(x + step, t, labels)[0], both(x - step, t, labels)[0]
    slope = jnp.linalg.norm(gradient.reshape(2, -1), axis=1)
    np.testing.assert_allclose((up - down) / 2e-2, slope, rtol=2e-2)
    other = both(x, t, jnp.array([1, 5]))
    np.testing.assert_allclose(other[1][0], gradient[0], rtol=1e-4, atol=1e-6)
    assert float(other[0][1]) != float(base[1])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("a", "b"), "names 2 classes, but config.model.model.unet.out_channels is 8"),
        (("a|b", "b", "c", "d", "e", "f", "g", "h"), "has empty or repeated words"),
        (("a", "", "c", "d", "e", "f", "g", "h"), "has empty or repeated words"),
    ],
)
def test_mistaken_classes_are_rejected(classes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, classes=classes)

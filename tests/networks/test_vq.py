from copy import deepcopy

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from tiny_networks import KINDS, PATCH, context, plan_of, strides, unet
from torch import nn

from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.methods.vqseg import VQSeg, VQSegConfig
from nnunetv2_vqseg.modules.adapter import PostVQFeatureAdapter
from nnunetv2_vqseg.networks.planned import choose_stage
from nnunetv2_vqseg.networks.vq import BatchLayout, VQSegNet, VQSegOutput, build_image_decoder


def small(**kwargs: object) -> VQSegConfig:
    return VQSegConfig(foundation_policy="off").override(
        {"num_codes": 64, "qpm_perplexity": 4, "qpm_neighbors": 8, "min_tokens": 8, **kwargs}
    )


def training_network(stock: nn.Module, config: VQSegConfig) -> VQSegNet:
    return VQSeg(config, context(plan_of(stock))).training_network()


def full_network(kind: type = PlainConvUNet, **kwargs: object) -> VQSegNet:
    network = training_network(unet(kind), small(**kwargs))
    network.attach_heads(build_image_decoder(network, 1, strides(), 32), PostVQFeatureAdapter(24, 12), (4, 4))
    return network


@pytest.mark.parametrize(
    ("patch", "strides", "stage"),
    [
        ((256, 224), [[1, 1], *[[2, 2]] * 6], 4),  # stride 16, as METHOD says
        ((128, 128), [[1, 1], *[[2, 2]] * 5], 3),  # stride 8
        ((64, 64), [[1, 1], *[[2, 2]] * 4], 2),  # stride 4
        ((320, 40), [[1, 1], [2, 1], [2, 1], [2, 2], [2, 2]], 3),  # the shorter side decides
        ((8, 8), [[1, 1], [2, 2]], 0),
    ],
)
def test_auto_stage_is_the_deepest_with_14_tokens(patch, strides, stage):
    assert choose_stage(patch, strides) == stage


@pytest.mark.parametrize("kind", KINDS)
def test_keys_are_stock_nnunets_plus_the_quantiser(kind):
    stock = unet(kind)
    network = VQSeg.network(plan_of(deepcopy(stock)), small())
    added = network.state_dict().keys() - stock.state_dict().keys()
    assert stock.state_dict().keys() <= network.state_dict().keys()
    assert added
    assert all(key.startswith("quantizer.") for key in added)
    full = full_network(kind)
    predicted = {key: value for key, value in full.state_dict().items() if key in network.state_dict()}
    network.load_state_dict(predicted, strict=True)
    heads = full.state_dict().keys() - predicted.keys()
    assert {key.split(".")[0] for key in heads} == {"image_decoder", "adapter"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("deep_supervision", [True, False])
def test_without_quantiser_eval_equals_stock_nnunet_exactly(kind, deep_supervision):
    stock = unet(kind, deep_supervision=deep_supervision).eval()
    config = small(quantize=False, strong_view=True, perturbation="none", reconstruct=False)
    network = VQSeg.network(plan_of(deepcopy(stock)), config).eval()
    x = torch.randn(2, 1, *PATCH)
    torch.testing.assert_close(network(x), stock(x), rtol=0, atol=0)


def test_continuous_decoder_input_predicts_as_stock_nnunet():
    stock = unet().eval()
    network = VQSeg.network(plan_of(deepcopy(stock)), small(decoder_input="continuous")).eval()
    x = torch.randn(2, 1, *PATCH)
    torch.testing.assert_close(network(x), stock(x), rtol=0, atol=0)


def test_quantised_prediction_reads_q_of_z():
    network = VQSeg.network(plan_of(unet(deep_supervision=False)), small(decoder_input="quantized")).eval()
    x = torch.randn(2, 1, *PATCH)
    skips = []
    for index, stage in enumerate(network.encoder.stages):
        x_in = x if index == 0 else skips[-1]
        skips.append(stage(x_in))
        if index == network.stage:
            skips[-1] = network.quantizer.embed(network.quantizer(skips[-1]).indices)
    torch.testing.assert_close(network(x), network.decoder(skips), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decoder_input", ["quantized", "continuous"])
def test_qpm_touches_the_perturbed_images_only(decoder_input):
    network = full_network(decoder_input=decoder_input, epsilon=1.0).train()
    x = torch.randn(6, 1, *PATCH)
    layout = BatchLayout(labeled=2, strong=2, perturbed=2)
    output = network(x, layout)
    network.perturbation.epsilon = 0.0
    clean = network(x, layout)
    for perturbed, untouched in zip(output.segmentation, clean.segmentation, strict=True):
        torch.testing.assert_close(perturbed[:4], untouched[:4])
    assert not torch.allclose(output.segmentation[0][4:], clean.segmentation[0][4:])
    torch.testing.assert_close(output.reconstruction[:2], clean.reconstruction[:2])
    assert not torch.allclose(output.reconstruction[2:], clean.reconstruction[2:])
    assert (output.perturbed_indices != output.indices[4:]).all()


def what_the_decoder_sees(network: VQSegNet, x: torch.Tensor) -> tuple[float, VQSegOutput]:
    """Root mean square of the change of the moved tokens at the quantised stage, over z's standard deviation."""
    read = []
    resume = network.backbone.resume

    def watched(net, maps, stage, last=None):
        read.append(maps[stage].detach())
        return resume(net, maps, stage, last)

    network.backbone.resume = watched
    layout = BatchLayout(labeled=2, perturbed=4)
    epsilon = network.perturbation.epsilon
    output = network(x, layout)
    network.perturbation.epsilon = 0.0
    network(x, layout)
    network.perturbation.epsilon = epsilon
    network.backbone.resume = resume
    change = (read[0] - read[1])[2:]
    moved = (output.perturbed_indices != output.indices[2:])[:, None].expand_as(change)
    assert (change[~moved] == 0).all()
    return float(change[moved].square().mean().sqrt() / network.stage_features(x)[2:].std(correction=0)), output


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("book", ["spread", "clustered"])
@pytest.mark.parametrize("decoder_input", ["quantized", "continuous"])
def test_qpm_s_step_has_the_chosen_length_whatever_projection_and_book(decoder_input, book, scale):
    for strength in (0.25, 2.0):
        network = full_network(decoder_input=decoder_input, qpm_strength=strength).train()
        with torch.no_grad():
            if book == "clustered":
                network.quantizer.codebook.copy_(1.0 + 0.05 * torch.randn_like(network.quantizer.codebook))
            network.quantizer.project_out.weight.mul_(scale)
        found, output = what_the_decoder_sees(network, torch.randn(6, 1, *PATCH))
        assert found == pytest.approx(strength, rel=1e-3)
        assert output.step.item() == pytest.approx(strength, rel=1e-3), "what the curve shows"


def test_without_a_chosen_length_the_step_is_that_of_the_codes_and_the_curve_shows_it():
    network = full_network(qpm_strength=None).train()
    x = torch.randn(6, 1, *PATCH)
    torch.manual_seed(1)
    before, output = what_the_decoder_sees(network, x)
    assert output.step.item() == pytest.approx(before, rel=1e-3)
    with torch.no_grad():
        network.quantizer.project_out.weight.mul_(0.1)
    torch.manual_seed(1)
    after, output = what_the_decoder_sees(network, x)
    assert after == pytest.approx(0.1 * before, rel=1e-2)
    assert output.step.item() == pytest.approx(after, rel=1e-3)


def test_a_move_of_chosen_length_teaches_the_projection_nothing():
    network = full_network(qpm_strength=1.0, epsilon=1.0).train()
    output = network(torch.randn(2, 1, *PATCH), BatchLayout(labeled=0, perturbed=2))
    sum(level.square().mean() for level in output.segmentation).backward()
    weight = network.quantizer.project_out.weight
    assert weight.grad is None or not weight.grad.any()


def test_a_projection_to_nothing_moves_nothing():
    network = full_network(qpm_strength=1.0, epsilon=1.0).train()
    with torch.no_grad():
        network.quantizer.project_out.weight.zero_()
    output = network(torch.randn(2, 1, *PATCH), BatchLayout(labeled=0, perturbed=2))
    assert output.step == 0
    assert all(level.isfinite().all() for level in output.segmentation)


@pytest.mark.parametrize(("layout", "aligned"), [((2, 2, 2), 4), ((2, 0, 2), 4), ((2, 2, 0), 4), ((2, 0, 0), 2)])
def test_alignment_reads_the_codes_before_qpm_of_the_labeled_images_and_of_one_view(layout, aligned):
    network = full_network(epsilon=1.0).train()
    x = torch.randn(sum(layout), 1, *PATCH)
    output = network(x, BatchLayout(*layout))
    expected = network.adapter(network.quantizer(network.stage_features(x)).quantized, network.alignment_grid)
    assert len(output.adapted) == aligned == BatchLayout(*layout).aligned
    torch.testing.assert_close(output.adapted, expected[:aligned])


@pytest.mark.parametrize("decoder_input", ["quantized", "continuous"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind, decoder_input):
    """DDP waits for ever for a parameter that does not."""
    network = full_network(kind, decoder_input=decoder_input).train()
    output = network(torch.randn(6, 1, *PATCH), BatchLayout(2, 2, 2))
    loss = sum(s.square().mean() for s in output.segmentation) + output.vq_loss + output.entropy
    loss = loss + output.reconstruction.abs().mean() + output.adapted.square().mean()
    if output.feature_loss is not None:
        loss = loss + output.feature_loss
    loss.backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert without == []


def test_training_output_has_the_documented_shapes():
    output = full_network().train()(torch.randn(6, 1, *PATCH), BatchLayout(3, 2, 1))
    assert isinstance(output, VQSegOutput)
    assert [tuple(s.shape) for s in output.segmentation] == [(6, 4, 32, 32), (6, 4, 16, 16), (6, 4, 8, 8)]
    assert output.reconstruction.shape == (4, 1, 32, 32)
    assert output.adapted.shape == (5, 12, 4, 4)
    assert output.indices.shape == (6, 8, 8)
    assert output.perturbed_indices.shape == (1, 8, 8)
    assert output.tokens.shape == (6 * 64, 16)


def test_image_decoder_has_one_convolution_a_resolution():
    network = full_network()
    steps = [module for module in network.image_decoder.modules() if isinstance(module, nn.ConvTranspose2d)]
    assert [step.stride for step in steps] == [(2, 2), (2, 2)]  # stage 2, whose first stride of 1 is no step
    sizes = []
    for module in network.image_decoder.modules():
        if isinstance(module, nn.InstanceNorm2d):
            module.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    network.reconstruct(torch.randn(1, 1, *PATCH))
    assert sizes == [(64, 8, 8), (32, 16, 16), (16, 32, 32)]


def test_dropout_perturbs_only_its_stream_and_only_in_training():
    config = small(quantize=False, perturbation="dropout", reconstruct=False, dropout_rate=0.9)
    network = training_network(unet(), config)
    x = torch.randn(4, 1, *PATCH)
    first, second = network(x, BatchLayout(2, 0, 2)), network(x, BatchLayout(2, 0, 2))
    torch.testing.assert_close(first.segmentation[0][:2], second.segmentation[0][:2])
    assert not torch.allclose(first.segmentation[0][2:], second.segmentation[0][2:])
    network.eval()
    torch.testing.assert_close(network(x)[0], network(x)[0], rtol=0, atol=0)


def test_entropy_without_weight_is_not_computed():
    x = torch.randn(2, 1, *PATCH)
    assert full_network(weight_entropy=0.0).train()(x).entropy == 0
    assert full_network(weight_entropy=0.1).train()(x).entropy != 0


def test_stage_that_the_plan_does_not_have_is_refused():
    with pytest.raises(ConfigError, match=r"vq_stage = 7 .* stages 0 to 3"):
        VQSeg.network(plan_of(unet()), small(vq_stage=7))


# Several quantised stages


def several(**kwargs: object) -> VQSegNet:
    return full_network(vq_more_stages=(3, 0), **kwargs)


def test_further_stages_have_books_of_their_own_that_prediction_loads():
    network = several()
    assert network.stage == 2
    assert network.stages == (0, 2, 3)
    assert list(network.quantizers) == [2, 0, 3]
    assert [own.channels for own in network.quantizers.values()] == [network.backbone.widths[at] for at in (2, 0, 3)]
    predicting = VQSeg.network(plan_of(unet()), small(vq_more_stages=(0, 3)))
    keys = predicting.state_dict().keys()
    assert {key.rsplit(".mapping", 1)[0] for key in keys if "mapping" in key} == {
        "quantizer",
        "more_quantizers.0",
        "more_quantizers.3",
    }
    predicting.load_state_dict({key: network.state_dict()[key] for key in keys}, strict=True)


@pytest.mark.parametrize("decoder_input", ["quantized", "continuous"])
def test_every_quantised_stage_is_read_as_the_setting_says(decoder_input):
    network = several(decoder_input=decoder_input).eval()
    x, maps = torch.randn(2, 1, *PATCH), []
    for index, stage in enumerate(network.encoder.stages):
        maps.append(stage(maps[-1] if maps else x))
        if decoder_input == "quantized" and index in network.quantizers:
            maps[-1] = network.quantizers[index](maps[-1]).quantized
    for found, expected in zip(network(x), network.decoder(maps), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_every_stage_is_moved_by_the_chosen_length_in_the_perturbed_images_only():
    network = several(epsilon=1.0, qpm_strength=0.5).train()
    assert len({id(qpm) for qpm in network.perturbations.values()}) == 3, "each stage has a table of its own"
    for moved in network.stages:
        for stage, perturbation in network.perturbations.items():
            perturbation.epsilon = float(stage == moved)
        x, read = torch.randn(4, 1, *PATCH), {}
        resume = network.backbone.resume

        def watched(net, maps, stage, last=None, read=read, resume=resume):
            read.setdefault(stage, []).append(maps[stage].detach())
            return resume(net, maps, stage, last)

        network.backbone.resume = watched
        network(x, BatchLayout(labeled=2, perturbed=2))
        network.perturbations[moved].epsilon = 0.0
        network(x, BatchLayout(labeled=2, perturbed=2))
        network.backbone.resume = resume
        change = read[moved][0] - read[moved][1]
        assert (change[:2] == 0).all()
        assert change[2:].square().mean().sqrt().item() == pytest.approx(
            0.5 * read[moved][1][2:].std().item(), rel=0.02
        )
        for stage in network.stages:
            if stage < moved:
                torch.testing.assert_close(read[stage][0], read[stage][1])


def test_losses_are_sums_over_the_stages_and_train_every_book():
    network = several().train()
    output = network(torch.randn(4, 1, *PATCH), BatchLayout(labeled=2, perturbed=2))
    assert [tuple(indices.shape[1:]) for indices, _ in output.more_codes] == [(32, 32), (4, 4)]
    (output.vq_loss + output.entropy + output.feature_loss).backward()
    assert all(own.mapping.weight.grad.abs().sum() > 0 for own in network.quantizers.values())
    first, all_of_them = full_network().train(), several().train()
    all_of_them.load_state_dict(first.state_dict(), strict=False)
    x = torch.randn(2, 1, *PATCH)
    others = [
        all_of_them.quantizers[stage](all_of_them.backbone.encode(all_of_them, x)[stage]).loss for stage in (0, 3)
    ]
    torch.testing.assert_close(all_of_them(x).vq_loss, first(x).vq_loss + sum(others))


@pytest.mark.parametrize(
    ("stages", "message"), [((9,), "0, 1, 3"), ((2,), "beside stage 2, this plan has stages 0, 1")]
)
def test_further_stages_that_the_plan_does_not_have_are_refused(stages, message):
    with pytest.raises(ConfigError, match=rf"vq_more_stages = \[{stages[0]}\] is not valid; .*{message}"):
        VQSeg.network(plan_of(unet()), small(vq_more_stages=stages))


def test_architecture_without_encoder_and_decoder_is_refused():
    with pytest.raises(NotImplementedError, match="PlainConvUNet and ResidualEncoderUNet"):
        VQSeg.network(plan_of(nn.Linear(2, 2)), small())


# torch.compile, nnU-Net's default on CUDA


@pytest.fixture(autouse=True)
def no_graphs_of_other_tests():
    """torch gives up compiling a function that was compiled eight times."""
    torch.compiler.reset()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    ("kind", "decoder_input", "more"),
    [(PlainConvUNet, "continuous", ()), (ResidualEncoderUNet, "quantized", ()), (PlainConvUNet, "continuous", (3,))],
)
def test_student_compiles_into_one_graph(kind, decoder_input, more, autocast):
    network = full_network(kind, decoder_input=decoder_input, vq_more_stages=more).train()
    if autocast:
        network.adapter = None  # the CPU cannot resize bfloat16 with antialiasing
    for stage, perturbation in network.perturbations.items():
        perturbation.prepare(network.quantizers[stage].codes().detach())
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = compiled(torch.randn(6, 1, *PATCH), BatchLayout(2, 2, 2))
    assert output.perturbed_indices.shape == (2, 8, 8)


def test_literal_perturbation_is_the_one_documented_graph_break():
    network = full_network(qpm="literal", decoder_input="quantized").train()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = torch.compile(network, backend="eager")
    x, layout = torch.randn(6, 1, *PATCH), BatchLayout(2, 2, 2)
    compiled(x, layout)
    assert len(counters["graph_break"]) == 1
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(2):  # another number of codes is moved
            compiled(x, layout)


def test_compiled_training_equals_eager_and_compiles_once():
    """Steps that move weights, restart codes and rebuild QPM's table, and a validation in between."""
    network = full_network(restart_after=1).train()
    eager = deepcopy(network)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    layout = BatchLayout(2, 2, 2)
    for number in range(4):
        x = torch.randn(6, 1, *PATCH)
        first_epoch = number < 2
        with torch.compiler.set_stance("default" if first_epoch else "fail_on_recompile"):
            outputs = [training_step(call, module, x, layout) for call, module in ((compiled, network), (eager, eager))]
        ours, expected = outputs
        assert torch.equal(ours.indices, expected.indices)
        assert torch.equal(ours.perturbed_indices, expected.perturbed_indices)
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
        with torch.no_grad(), torch.compiler.set_stance("default" if number == 0 else "fail_on_recompile"):
            network.eval()
            compiled(x[:2])
            network.train()
    for mine, theirs in zip(network.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def training_step(call: nn.Module, network: nn.Module, x: torch.Tensor, layout: BatchLayout) -> VQSegOutput:
    """Forward of `call`, which is `network` or its compiled version, backward, step and the codebook's bookkeeping."""
    torch.manual_seed(0)
    network.perturbation.discard_table()
    network.perturbation.prepare(network.quantizer.codes().detach())
    output = call(x, layout)
    network.zero_grad()
    terms = [*output.segmentation, output.reconstruction, output.adapted]
    loss = sum(term.square().mean() for term in terms) + 16 * output.vq_loss + output.entropy + output.feature_loss
    loss.backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.sub_(parameter.grad, alpha=0.01)
    assert network.quantizer.observe(output.indices, output.tokens) > 0
    return output

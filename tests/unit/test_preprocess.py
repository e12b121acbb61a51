"""Preparing clips with small random networks, and with the real ones where they are."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors.torch import load_file
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from latentsync_ray.config.errors import UserError
from latentsync_ray.latentsync.data.aligned import read_clip
from latentsync_ray.latentsync.data.clips import PreparedClips, _draw_ref_start, keyed_generator
from latentsync_ray.latentsync.data.media import Clip, face_mask, from_pcm, mel_spectrogram, resize_frame, to_pixels
from latentsync_ray.latentsync.models.autoencoder import encode_latents, load_autoencoder
from latentsync_ray.latentsync.preparation.encode import AudioEncoder
from latentsync_ray.latentsync.preparation.prepare import held_out, prepare
from latentsync_ray.latentsync.preparation.run import find_sources

RESOLUTION, WIDTH, CHUNK_SECONDS = 32, 16, 1


class Networks(NamedTuple):
    vae: Path
    audio_encoder: Path


def whisper_config(**options) -> WhisperConfig:
    return WhisperConfig(
        d_model=WIDTH, encoder_layers=4, encoder_attention_heads=2, encoder_ffn_dim=32, decoder_layers=1,
        decoder_attention_heads=2, decoder_ffn_dim=32, max_source_positions=50 * CHUNK_SECONDS, vocab_size=32,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("networks")
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1), scaling_factor=2.0,
    ).save_pretrained(folder / "vae")  # fmt: skip
    WhisperEncoder(whisper_config()).save_pretrained(folder / "whisper")
    WhisperFeatureExtractor(chunk_length=CHUNK_SECONDS).save_pretrained(folder / "whisper")
    return Networks(folder / "vae", folder / "whisper")


def make_clips(num_frames: int = 20, size: int = RESOLUTION) -> list[Clip]:
    rng = np.random.default_rng(7)
    return [
        Clip(
            f"speaker{i // 2}/{i % 2:02d}",
            rng.integers(0, 256, (num_frames, size, size, 3), dtype=np.uint8),
            rng.normal(0, 0.1, 640 * num_frames).astype(np.float32),
        )
        for i in range(6)
    ]


def names(clips: PreparedClips) -> list[str]:
    return [clip.name for clip in clips.index.clips]


def test_audio_states_are_each_layer_s_input_before_the_last_normalisation(networks: Networks) -> None:
    encoder = AudioEncoder(networks.audio_encoder)
    assert encoder.shape == (5, WIDTH)
    wave = np.random.default_rng(0).normal(0, 0.1, 40000).astype(np.float32)  # 2.5 s: three chunks
    states = encoder(wave)
    assert states.shape == (125, 5, WIDTH) and states.dtype == torch.float32

    extractor = WhisperFeatureExtractor.from_pretrained(networks.audio_encoder)
    for start in (0, 16000, 32000):
        mel = extractor(wave[start : start + 16000], sampling_rate=16000, return_tensors="pt").input_features
        with torch.inference_mode():
            expected = encoder.network(mel, output_hidden_states=True)
        own = states[start // 320 : start // 320 + 50]
        for layer in range(4):  # transformers agrees on these; its last one is after the normalisation
            assert own[:, layer].equal(expected.hidden_states[layer][0, : len(own)])
        with torch.inference_mode():
            assert encoder.network.layer_norm(own[:, 4]).allclose(
                expected.last_hidden_state[0, : len(own)], atol=1e-6
            )


def test_a_whole_whisper_gives_the_states_of_its_encoder(tmp_path: Path) -> None:
    torch.manual_seed(1)
    whisper = WhisperModel(whisper_config()).half()
    extractor = WhisperFeatureExtractor(chunk_length=CHUNK_SECONDS)
    for part, folder in ((whisper, tmp_path / "whole"), (whisper.encoder, tmp_path / "encoder")):
        part.save_pretrained(folder)
        extractor.save_pretrained(folder)
    wave = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    whole, alone = AudioEncoder(tmp_path / "whole"), AudioEncoder(tmp_path / "encoder")
    assert whole(wave).dtype == torch.float32 and whole(wave).equal(alone(wave))


def test_what_is_no_audio_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"audio encoder {tmp_path / 'absent'}: cannot be loaded"):
        AudioEncoder(tmp_path / "absent")
    WhisperEncoder(whisper_config()).save_pretrained(tmp_path / "long")
    WhisperFeatureExtractor(chunk_length=30).save_pretrained(tmp_path / "long")
    with pytest.raises(UserError, match=r"long: max_source_positions must be 50 times chunk_length \(30\), is 50"):
        AudioEncoder(tmp_path / "long")
    weights = next((tmp_path / "long").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="long: cannot be loaded"):
        AudioEncoder(tmp_path / "long")


def test_a_prepared_clip_holds_what_the_networks_make_of_it(tmp_path: Path, networks: Networks) -> None:
    sources = make_clips(size=40)
    prepared = prepare(
        sources, tmp_path / "set", **networks._asdict(), resolution=RESOLUTION, validation=["speaker1/*"]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["set"]  # nothing of the making is left
    assert names(prepared) == [clip.name for clip in sources]
    assert [clip.name for clip in prepared.validation] == ["speaker1/00", "speaker1/01"]
    assert prepared.mask.equal(face_mask(RESOLUTION))

    source, record = sources[3], prepared.index.clips[3]
    tensors = load_file(prepared.folder / record.file)
    frames = torch.from_numpy(np.stack([resize_frame(frame, RESOLUTION) for frame in source.frames])).permute(
        0, 3, 1, 2
    )
    pixels, vae = to_pixels(frames), load_autoencoder(networks.vae)
    assert tensors["frames"].equal(frames)
    with torch.inference_mode():
        torch.testing.assert_close(tensors["latents"], encode_latents(vae, pixels))
        torch.testing.assert_close(tensors["masked_latents"], encode_latents(vae, pixels * face_mask(RESOLUTION)))
    assert tensors["audio_features"].equal(AudioEncoder(networks.audio_encoder)(source.wave))
    np.testing.assert_array_equal(tensors["mel"], mel_spectrogram(source.wave))
    assert tensors["audio_features"].shape == (40, 5, WIDTH) and tensors["mel"].shape == (80, 65)
    assert tensors["wave"].dtype == torch.int16
    np.testing.assert_allclose(from_pcm(tensors["wave"]), source.wave, rtol=0, atol=0.5001 / 32767)

    sample = prepared.train_sample(0, 0, 0, 8)
    shapes = {key: tuple(value.shape) for key, value in sample.items() if key != "name"}
    assert shapes == {
        "latents": (4, 8, 4, 4), "masked_latents": (4, 8, 4, 4), "ref_latents": (4, 8, 4, 4), "masks": (1, 8, 4, 4),
        "audio_features": (8, 50, WIDTH), "mel": (1, 80, 26), "frames": (3, 8, RESOLUTION, RESOLUTION),
    }  # fmt: skip


def test_latents_of_a_posterior_are_drawn_as_encoding_in_a_training_step_would(
    tmp_path: Path, networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, scaling_factor=0.18215, shift_factor=0.1,
    ).save_pretrained(tmp_path / "kl")  # fmt: skip
    settings = {"audio_encoder": networks.audio_encoder, "resolution": RESOLUTION, "validation": ["speaker2/*"]}
    prepared = prepare(make_clips(), tmp_path / "set", vae=tmp_path / "kl", **settings)
    vae = load_autoencoder(tmp_path / "kl").to(memory_format=torch.channels_last)

    def expected(sample: dict, rng: np.random.Generator, start: int, ref_start: int) -> dict[str, torch.Tensor]:
        """Diffusers' own sampling, its noise replaced by ours; encoded in the same batches, so to the last bit."""
        record = next(clip for clip in prepared.index.clips if clip.name == sample["name"])
        pixels = to_pixels(load_file(prepared.folder / record.file)["frames"])
        latents = {}
        for key, source, first in (
            ("latents", pixels, start),
            ("masked_latents", pixels * prepared.mask, start),
            ("ref_latents", pixels, ref_start),
        ):
            with torch.inference_mode():
                posterior = vae.encode(source).latent_dist
            window = DiagonalGaussianDistribution(posterior.parameters[first : first + 8])
            eps = torch.from_numpy(rng.standard_normal((8, 4, 16, 16), dtype=np.float32))
            monkeypatch.setattr("diffusers.models.autoencoders.vae.randn_tensor", lambda *args, eps=eps, **kw: eps)
            latents[key] = ((window.sample() - 0.1) * 0.18215).transpose(0, 1)
        return latents

    sample, rng = prepared.train_sample(3, 5, 1, 8), keyed_generator(3, "train_sample", 5, 1)
    rng.integers(4)
    start = int(rng.integers(13))
    for key, latents in expected(sample, rng, start, _draw_ref_start(20, start, 8, rng)).items():
        assert sample[key].equal(latents), key
    again, other = prepared.train_sample(3, 5, 1, 8), prepared.train_sample(3, 6, 1, 8)
    assert again["latents"].equal(sample["latents"]) and not other["latents"].equal(sample["latents"])

    (sample,), rng = prepared.validation_samples(1, 8, 9), keyed_generator(9, "validation_samples", 0)
    start = int(rng.random() * 13)
    for key, latents in expected(sample, rng, start, _draw_ref_start(20, start, 8, rng)).items():
        assert sample[key].equal(latents), key

    # A network without a posterior: nothing more is stored, and what is drawn is what was encoded.
    tiny = prepare(make_clips(), tmp_path / "tiny", vae=networks.vae, **settings)
    assert "posterior" not in (tmp_path / "tiny" / "index.json").read_text()
    tensors = load_file(tiny.folder / tiny.index.clips[0].file)
    assert tensors.keys() == {"frames", "latents", "masked_latents", "audio_features", "mel", "wave"}


def test_the_same_again_is_not_prepared_again(
    tmp_path: Path, networks: Networks, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**networks._asdict(), "resolution": RESOLUTION}
    first = prepare(make_clips(), tmp_path / "set", **settings)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    capsys.readouterr()
    again = prepare(iter(make_clips()[::-1]), tmp_path / "set", **settings)
    assert "nothing to do" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    assert again.fingerprint == first.fingerprint == prepare(make_clips(), tmp_path / "other", **settings).fingerprint

    for changed in ({"resolution": 64}, {"validation": ["speaker0/*"]}):
        with pytest.raises(UserError, match=r"set: holds something else.*choose another folder or remove it"):
            prepare(make_clips(), tmp_path / "set", **{**settings, **changed})
    with pytest.raises(UserError, match="set: holds something else"):
        prepare(make_clips()[:5], tmp_path / "set", **settings)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    with pytest.raises(UserError, match="mine: holds something else"):
        prepare(make_clips(), tmp_path / "mine", **settings)
    with pytest.raises(UserError, match="resolution: must be a multiple of 8, is 30"):
        prepare(make_clips(), tmp_path / "odd", **{**settings, "resolution": 30})


def test_the_split_is_by_pattern_or_about_every_fifth() -> None:
    many = [f"speaker{i // 10}/{i % 10:02d}" for i in range(60)]
    assert held_out(many, ["speaker4/*", "*/09"]) == {name for name in many if name[7] == "4" or name.endswith("9")}
    chosen = held_out(many, [])
    assert len(chosen) == 12 and held_out(many[::-1], []) == chosen and len({name[:8] for name in chosen}) > 2
    assert len(held_out(many[:2], [])) == 1
    with pytest.raises(
        UserError, match=r"validation: Speaker4/\* must match some of the 60 clips and not all, matches 0"
    ):
        held_out(many, ["Speaker4/*"])
    with pytest.raises(UserError, match="matches 60"):
        held_out(many, ["*"])
    with pytest.raises(UserError, match="1 can be used"):
        held_out(["a"], [])


def test_videos_are_found_and_hidden_files_and_links_are_not(tmp_path: Path) -> None:
    videos = ("a/x.mp4", "b/x.MP4", "b/deep/x.mov", "x.mp4", "y.mkv", "z.webm", "zz.avi")
    for path in (*videos, "x.wav", "notes.txt", ".hidden.mp4", "a/._x.mp4", ".folder/x.mp4"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    (tmp_path / "a" / "again.mp4").symlink_to(tmp_path / "x.mp4")
    (tmp_path / "b" / "hard.mp4").hardlink_to(tmp_path / "y.mkv")
    undecodable = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9.mp4")
    Path(undecodable).write_text("other")
    sources, notices = find_sources(tmp_path)
    names = [source.name for source in sources]
    assert sorted(names) == ["\\xff\\xe9", "a/x", "b/deep/x", "b/hard", "b/x", "x", "z", "zz"]
    assert undecodable in [source.path for source in sources]
    assert notices == [
        f"skipped {tmp_path}/y.mkv: is the same file as {tmp_path}/b/hard.mp4",
        f"skipped {tmp_path}/a/again.mp4: is the same file as {tmp_path}/x.mp4",
    ]
    with pytest.raises(UserError, match=r"notes\.txt: must be a folder"):
        find_sources(tmp_path / "notes.txt")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"none: no \.mp4"):
        find_sources(tmp_path / "none")


def test_two_clips_of_one_name_are_an_error(tmp_path: Path, networks: Networks) -> None:
    with pytest.raises(UserError, match="names must differ, two are called speaker0/00"):
        prepare(make_clips()[:1] * 2, tmp_path / "set", **networks._asdict(), resolution=RESOLUTION)


def test_a_clip_with_values_that_are_not_finite_is_left_out(
    tmp_path: Path, networks: Networks, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = make_clips()
    clips[0].wave[5] = np.nan
    prepared = prepare(clips, tmp_path / "set", **networks._asdict(), resolution=RESOLUTION)
    assert names(prepared) == [clip.name for clip in clips[1:]]
    assert "left out speaker0/00: its audio_features are not all finite" in capsys.readouterr().err


def test_real_networks_prepare_a_real_clip(shared: Path, tmp_path: Path) -> None:
    real = shared / "real"
    clips = [read_clip(real / "clips" / f"{name}.mp4", resolution=64) for name in ("demo1_00", "demo2_00")]
    prepared = prepare(
        clips,
        tmp_path / "set",
        vae=real / "autoencoder",
        audio_encoder=real / "whisper-tiny.en-encoder",
        resolution=64,
    )
    tensors = load_file(prepared.folder / prepared.index.clips[1].file)
    assert tensors["audio_features"].shape == (150, 5, 384) and tensors["latents"].shape == (75, 4, 8, 8)
    # The layers differ, and the last is not normalised: such states reach far beyond 1 (README of the pack: 13).
    assert tensors["audio_features"][:, 4].abs().max() > 5
    # What lies in the mask does not reach the masked latents' middle: grey everywhere, whoever speaks.
    assert tensors["masked_latents"][:, :, 5, 4].std(dim=0).max() < tensors["latents"][:, :, 5, 4].std(dim=0).min()
    assert hashlib.sha256((prepared.folder / prepared.index.clips[1].file).read_bytes()).hexdigest() == (
        prepared.index.clips[1].sha256
    )

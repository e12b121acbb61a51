"""Users' mistakes in networks, clips, and what makes both."""

from mistakes import SECOND, SECRET, TRAIN, Mistake, append, put, remove, write

SYNCNET = "configs/demo/syncnet.yaml"
TRAIN_SYNCNET = f"train_syncnet {SYNCNET}"
NO_DRAWING = f"{TRAIN} data.synthetic=null"
VAE, LPIPS = "assets/demo/autoencoder", "assets/demo/lpips"
INDEX = "data/demo/index.json"

PREPARATION_MISTAKES = [
    # A SyncNet
    Mistake("no file of settings", "train_syncnet configs/nowhere.yaml", ("configs/nowhere.yaml", "no such file")),
    Mistake(
        "unknown setting",
        TRAIN_SYNCNET,
        (SYNCNET, "'rate'", "syncnet/config.py"),
        append(SYNCNET, "rate: 1\n"),
    ),
    Mistake("uneven groups of windows", f"{TRAIN_SYNCNET} batch_size=99991", ("batch_size", "99991")),
    Mistake("no other place to compare", f"{TRAIN_SYNCNET} windows_per_clip=1", ("windows_per_clip", "got 1")),
    Mistake("odd height", f"{TRAIN_SYNCNET} resolution=77", ("resolution", "got 77")),
    Mistake("drawn clips without an encoder", f"{TRAIN_SYNCNET} audio_encoder=null", ("audio_encoder", "synthetic")),
    Mistake("autoencoder that is not there", f"{TRAIN_SYNCNET} vae=./nowhere", ("vae", "nowhere")),
    Mistake(
        "windows of another length",
        f"{TRAIN_SYNCNET} data.num_frames=9",
        ("visual_encoder.in_channels", "(27)", "got 24"),
    ),
    Mistake("half a network", f"{TRAIN_SYNCNET}", ("model", "audio_encoder"), put(SYNCNET, "model", value={})),
    Mistake("unknown part of the network", f"{TRAIN_SYNCNET} model.text_encoder={{}}", ("model", "'text_encoder'")),
    Mistake(
        "no clips for SyncNet",
        f"{TRAIN_SYNCNET} data.synthetic=null data.folder=data/demo",
        (INDEX, "No such file"),
    ),
    Mistake("lookup for a SyncNet", f"{TRAIN_SYNCNET} 'output={SECRET}'", ("output", SECRET)),
    # Preparation
    Mistake("no folder of clips", "preprocess clips out --vae v --audio-encoder a", ("clips", "must be a folder")),
    Mistake("folder without clips", "preprocess configs out --vae v --audio-encoder a", ("configs", "no .mp4")),
]

# Networks and clips: these take libraries that are loaded after Ray has told whether the cluster can hold the search.
MISTAKEN_INPUTS = [
    Mistake("network that is not there", TRAIN, ("components.lpips", LPIPS), remove(LPIPS)),
    Mistake("empty folder for a network", TRAIN, ("components.lpips", LPIPS), remove(f"{LPIPS}/config.json")),
    Mistake("folder that holds no autoencoder", TRAIN, ("vae", VAE), write(f"{VAE}/config.json", "{}")),
    Mistake(
        "weights cut short", TRAIN, ("vae", VAE), write(f"{VAE}/diffusion_pytorch_model.safetensors", b"\x10\0\0")
    ),
    Mistake(
        "unknown option of the UNet",
        TRAIN,
        ("second_stage", "'num_blocks'"),
        put(SECOND, "model", "num_blocks", value=3),
    ),
    Mistake(
        "widths that groups do not divide",
        f"{TRAIN} first_stage.model.norm_num_groups=7",
        ("first_stage", "divisible by num_groups"),
    ),
    Mistake("groups of nothing", f"{TRAIN} first_stage.model.norm_num_groups=0", ("first_stage", "zero")),
    Mistake(
        "nothing to train",
        TRAIN,
        ("second_stage", "trainable_modules", "'attention_layers.'"),
        put(SECOND, "trainable_modules", value=["attention_layers."]),
    ),
    Mistake("unknown training", f"{TRAIN} training=mine:Training", ("training", "mine:Training")),
    Mistake("no clips", NO_DRAWING, (INDEX, "No such file")),
    Mistake("damaged index", NO_DRAWING, (INDEX, "not JSON"), write(INDEX, '{"format": 2, "clips": [{"na')),
    Mistake("index of another format", NO_DRAWING, (INDEX, "format", "99"), write(INDEX, '{"format": 99}')),
]

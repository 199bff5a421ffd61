"""A GGUF file as a Hugging Face checkpoint: `python -m rayferry.submit.local.convert FILE FOLDER`.

A process of its own, as it needs torch and transformers, which the rest of the laptop side does without.
"""

import sys
from pathlib import Path


def convert(source: Path, target: Path) -> None:
    """Writes the weights of `source`, dequantised to bfloat16, and its tokenizer into `target`."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    AutoTokenizer.from_pretrained(**where).save_pretrained(target)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    # the weights are plain now, but transformers still calls the model quantised and would not save it
    model.hf_quantizer = None
    model.quantization_method = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))

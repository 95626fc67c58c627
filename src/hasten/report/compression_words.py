"""The page's words for a compression, English and Chinese (see `words.py`)."""

from hasten.report.frame import Words

COMPRESSION_WORDS: dict[str, Words] = {
    "compression": ("Compression", "压缩"),
    "compression_intro": (
        "Each model of the chain beside the original, on held-out text and on this machine; ± is half of the"
        " 95% interval, and changes are paired.",
        "各模型与原模型逐一比较：同一份未参与训练的文本，同一台机器；± 为 95% 区间的一半，变化按配对计算。",
    ),
    "compression_target": ("Asked for:", "目标："),
    "original": ("original", "原模型"),
    "figure": ("Figure", "指标"),
    "parameter_count": ("Parameters", "参数量"),
    "bytes_on_disk": ("Bytes on the disk", "磁盘字节数"),
    "share_of_bytes": ("of the original", "占原模型"),
    "zeros": ("Zeros in matrices", "矩阵中零的比例"),
    "memory_for_it": ("Peak memory for it", "峰值内存（模型部分）"),
    "process_peak": ("Peak memory, whole process", "峰值内存（整个进程）"),
    "reads_prompt": ("Reads a prompt in", "读入提示用时"),
    "reads_faster": ("times as fast at reading", "读入加速倍数"),
    "writes": ("Tokens per second", "词元/秒"),
    "examples_per_second": ("Examples per second", "样本/秒"),
    "writes_faster": ("times as fast", "加速倍数"),
    "change": ("change", "变化"),
    "quality_kept": ("Quality kept", "保留的质量"),
    "same_choice": ("Same first choice as the original", "首选与原模型一致"),
    "kl": ("KL from the original, nats", "与原模型的 KL（奈特）"),
    "quality_against_size": ("Quality against size", "质量与体积"),
    "smaller_is_left": (
        "Left is smaller; the line follows the chain, bars are 95% intervals of the change.",
        "越靠左越小；折线为链的顺序，竖线为相对原模型变化的 95% 区间。",
    ),
    "lower_better": ("lower is better", "越低越好"),
    "higher_better": ("higher is better", "越高越好"),
    "steps_taken": ("What was done", "所做步骤"),
    "compressed_bytes": ("Compressed to", "压缩至"),
    "compressed_speedup": ("Compressed, times as fast", "压缩后加速倍数"),
    "compressed_quality": ("Compressed, quality kept", "压缩后保留的质量"),
    "preference_score": ("Preferred answers found", "偏好准确率"),
    "share_right": ("Accuracy", "准确率"),
    "target_loss": ("Loss, nats a target", "损失（奈特/目标）"),
}

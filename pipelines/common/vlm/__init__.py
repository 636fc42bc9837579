"""Video vision-language models: build or load one, put questions to it, train LoRA on it, score its answers.

Nothing here knows an operation or a label: questions and answers come in as text and frames.
"""

"""The character model of McMahan et al. 2017 (section 3), as LEAF, TensorFlow Federated and FedML have it."""

from torch import Tensor, nn


class CharLSTM(nn.Module):
    """An embedding, two stacked LSTM layers, a linear layer: input int64 (B, L), output logits (B, L, vocabulary_size).

    Each position's logits are of the next character; without ``every_position`` only the last position's are given, (B,
    vocabulary_size). 822,570 parameters as it stands, as FedML's: TensorFlow's LSTM has one bias a gate where PyTorch's
    has two, so that TensorFlow Federated's model has 820,522. LEAF's is ``CharLSTM(80, every_position=False)``.

    >>> sum(p.numel() for p in CharLSTM().parameters())
    822570
    """

    def __init__(
        self,
        vocabulary_size: int = 90,
        embedding_size: int = 8,
        hidden_size: int = 256,
        num_layers: int = 2,
        every_position: bool = True,
    ) -> None:
        super().__init__()
        self.every_position = every_position
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        self.lstm = nn.LSTM(embedding_size, hidden_size, num_layers, batch_first=True)
        self.out = nn.Linear(hidden_size, vocabulary_size)

    def forward(self, characters: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(characters))
        logits: Tensor = self.out(states if self.every_position else states[:, -1])
        return logits

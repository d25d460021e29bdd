# A mixture of experts: which of them a token goes to and with what weights, forward and backward; the tokens of a step sorted
# by expert. What an expert computes is an MLP like any other (block.pxd).
#
# n experts, k of them chosen for each token. A table row of kernels/reference and of formats says which way of choosing a
# family has:
#
#   scores  = softmax of all logits, or sigmoid of each
#   chosen  = the k largest of scores + selection bias (which decides, and weighs nothing), of the groups with the largest
#             of them: the sum of its two largest where scores are sigmoids (DeepSeek-V3), else its largest (DeepSeek-V2)
#   weights = the chosen scores, with `renormalised` divided by their sum; times `scale`

from .linear cimport Linear
from .mlp cimport Activation

cdef enum:
    MAX_EXPERTS = 1024
    GATE_EXPERT = 0             # an expert's matrices, in the order of use
    UP_EXPERT = 1
    DOWN_EXPERT = 2
    OF_EXPERT = 3

cdef enum:                      # scores
    SOFTMAX = 0
    SIGMOID = 1

cdef struct Routing:
    int n
    int k
    int scores
    bint renormalised
    float scale
    int n_groups                # of n / n_groups neighbours; 0 or 1: none
    int n_used_groups           # those whose experts may be chosen

cdef struct Experts:            # of one layer
    Routing routing
    const Activation* activation
    int n_ff
    int ff_p                    # padded to 16
    Linear router               # (n, n_embd), with the bias of its logits
    const float* selection      # (n) or NULL
    Linear* linear              # (n, OF_EXPERT)
    const float* shared_gate    # (n_embd padded to 16): the shared expert's output times sigmoid of its product; NULL: as it is

cdef void route(const Routing* r, const float* logits, const float* selection, int* chosen, float* weights) noexcept nogil
cdef void route_backward(const Routing* r, const float* logits, const int* chosen, const float* weights, const float* e, float* dlogits) noexcept nogil
cdef int sort_by_expert(const Routing* r, const int* chosen, int n_tokens, int* active, int* first, int* place, int* token_of) noexcept nogil
cdef float shared_weight(const float* gate, const float* x, int n) noexcept nogil

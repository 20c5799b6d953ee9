"""The family tree of linear-time mixers: each arrow sets one's parameters so that it becomes another, and compares."""

import pytest
import torch
import torch.nn.functional as F

from ssmcore import create_mixer
from ssmcore.functional import chunked_scan, linear_recurrence, selective_scan
from ssmcore.mixer import Context
from ssmcore.mixers.diagonal_lti import diagonal_kernel
from ssmcore.mixers.rwkv7 import erasing_scan

B, L, H, N, P = 2, 21, 3, 4, 5


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def qkv():
    return normal(B, L, H, N), F.normalize(normal(B, L, H, N, seed=1), dim=-1), normal(B, L, H, P, seed=2)


def same(got, want):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def sharing(name, other, **options):
    """Two mixers, the second with those weights of the first that it has in the same shape."""
    torch.manual_seed(0)
    first, second = (create_mixer(n, 8, **options).double() for n in (name, other))
    own = second.state_dict()
    common = {n: t for n, t in first.state_dict().items() if n in own and own[n].shape == t.shape}
    second.load_state_dict(common, strict=False)
    return first, second


def memories(mixers, x):
    return [mixer(x, return_state=True)[1]["memory"] for mixer in mixers]


def test_no_decay_is_linear_attention(qkv):
    q, k, v = qkv
    weights = torch.einsum("bthn,bshn->bhts", q, k).tril()
    same(chunked_scan(q, k, v), torch.einsum("bhts,bshp->bthp", weights, v))
    same(chunked_scan(q, k, v, log_decay=torch.zeros(B, L, H, dtype=q.dtype)), chunked_scan(q, k, v))


def test_a_column_of_ones_is_the_normaliser(qkv):
    q, k, v = qkv
    q, k = q.exp(), k.exp()  # positive features
    o = chunked_scan(q, k, torch.cat([v, torch.ones_like(v[..., :1])], -1))
    weights = torch.einsum("bthn,bshn->bhts", q, k).tril()
    weights = weights / weights.sum(-1, keepdim=True)
    same(o[..., :-1] / o[..., -1:], torch.einsum("bhts,bshp->bthp", weights, v))


def test_a_constant_decay_is_retnet(qkv):
    q, k, v = qkv
    mixer = create_mixer("retnet", H * N, num_heads=H, rope_base=None).double()
    weights = mixer.weigh(normal(B, L, H * N), q, k, v, None, Context())
    gamma = 1 - 2.0 ** -(5 + torch.arange(H, dtype=torch.float64))
    distance = torch.arange(L)[:, None] - torch.arange(L)
    mask = (gamma[:, None, None] ** distance.clamp(min=0)).tril()
    scores = torch.einsum("bthn,bshn->bhts", q, k) * N**-0.5 * mask
    same(chunked_scan(*weights[:3], log_decay=weights.log_decay), torch.einsum("bhts,bshp->bthp", scores, v))


def test_mamba_with_one_decay_a_head_is_mamba2():
    """Mamba's A equal over the states and channels of a head, and its steps over the channels."""
    u, B_, C = normal(B, L, H, P), normal(B, L, N, seed=1), normal(B, L, N, seed=2)
    dt, A = normal(B, L, H, seed=3).exp(), -normal(H, seed=4).exp()
    o = chunked_scan(C[:, :, None], B_[:, :, None], dt[..., None] * u, log_decay=dt * A)
    wide = selective_scan(
        u.flatten(2), dt.repeat_interleave(P, -1), A.repeat_interleave(P)[:, None].expand(-1, N), B_, C
    )
    same(o.flatten(2), wide)


@pytest.mark.parametrize("delta", [False, True])
def test_equal_decays_of_a_heads_channels_are_one(qkv, delta):
    """GLA is Mamba-2's map then, and KDA is Gated DeltaNet."""
    log_decay, beta = -normal(B, L, H, seed=3).abs(), 2 * normal(B, L, H, seed=4).sigmoid() if delta else None
    wide = log_decay[..., None].expand(-1, -1, -1, N)
    same(chunked_scan(*qkv, log_decay=wide, beta=beta), chunked_scan(*qkv, log_decay=log_decay, beta=beta))


@torch.no_grad()
def test_kda_with_equal_decays_is_gated_deltanet():
    gdn, kda = sharing("gated_deltanet", "kda", num_heads=2, expand_k=1.0, expand_v=1.0)
    kda.dt_bias.copy_(gdn.dt_bias.repeat_interleave(kda.d_key))
    kda.a_proj[0].weight.copy_(gdn.a_proj.weight.repeat(2, 1))
    kda.a_proj[1].weight.copy_(torch.eye(2, 4).repeat_interleave(kda.d_key, 0))
    x = normal(2, L, 8)
    same(kda.log_decay(x), gdn.log_decay(x)[..., None].expand(-1, -1, -1, kda.d_key))
    same(*memories((gdn, kda), x))


@torch.no_grad()
def test_gated_deltanet_that_never_forgets_is_deltanet():
    deltanet, gdn = sharing("deltanet", "gated_deltanet", num_heads=2, expand_k=1.0, expand_v=1.5, beta_max=2.0)
    gdn.A_log.fill_(-200.0)
    same(*memories((deltanet, gdn), normal(2, L, 8)))


def test_a_weak_correction_only_writes(qkv):
    """beta to 0 with beta v fixed: the delta rule is lost, and Gated DeltaNet is Mamba-2's map."""
    q, k, v = qkv
    log_decay, tiny = -normal(B, L, H, seed=3).abs(), 1e-8
    weak = chunked_scan(q, k, v / tiny, log_decay=log_decay, beta=torch.full_like(log_decay, tiny))
    torch.testing.assert_close(weak, chunked_scan(q, k, v, log_decay=log_decay), rtol=1e-6, atol=1e-6)


def test_one_key_channel_is_the_diagonal_recurrence():
    """HGRN2 with keys of width 1 is HGRN: h = f h + (1 - f) v."""
    q, gate, v = normal(B, L, H, 1), normal(B, L, H, 1, seed=1), normal(B, L, H, 1, seed=2)
    mixer = create_mixer("hgrn2", H, num_heads=H).double()
    weights = mixer.weigh(normal(B, L, H), q, gate, v, None, Context())
    o = chunked_scan(*weights[:3], log_decay=weights.log_decay)[..., 0]
    f = gate[..., 0].sigmoid()
    same(o, F.silu(q[..., 0]) * linear_recurrence(f, (1 - f) * v[..., 0]))


def test_hgrn2_is_gla_with_tied_gates():
    """GLA at tau = 1 whose keys are what its decays leave."""
    q, gate, v = normal(B, L, 1, N), normal(B, L, 1, N, seed=1), normal(B, L, 1, P, seed=2)
    hgrn2, gla = create_mixer("hgrn2", N).double(), create_mixer("gla", N, tau=1.0, expand_k=1.0, decay_rank=N).double()
    with torch.no_grad():
        gla.gk_proj[0].weight.copy_(torch.eye(N))
        gla.gk_proj[1].weight.copy_(torch.eye(N))
        gla.gk_proj[1].bias.zero_()
    ours = hgrn2.weigh(v, q, gate, v, None, Context())
    theirs = gla.weigh(gate[:, :, 0], F.silu(q) * N**0.5, 1 - gate.sigmoid(), v, None, Context())
    for a, b in zip(ours[:4], theirs[:4], strict=True):
        same(a, b)


def test_rwkv7_that_erases_what_it_writes_to_is_the_gated_delta_rule(qkv):
    """(Diag(w) - b c^T) S with b = beta k and c = w k is (1 - beta k k^T) Diag(w) S."""
    q, k, v = qkv
    log_decay, beta = -0.6 * normal(B, L, H, N, seed=3).sigmoid(), normal(B, L, H, seed=4).sigmoid()
    write = beta[..., None] * k
    o, last = erasing_scan((q, write, v, log_decay, write, log_decay.exp() * k), None)
    want = chunked_scan(q, k, v, log_decay=log_decay, beta=beta, return_last_state=True)
    same(o, want[0])
    same(last, want[1])


def test_rwkv7_that_erases_nothing_is_gla(qkv):
    q, k, v = qkv
    log_decay = -0.6 * normal(B, L, H, N, seed=3).sigmoid()
    o, _ = erasing_scan((q, k, v, log_decay, torch.zeros_like(k), k), None)
    same(o, chunked_scan(q, k, v, log_decay=log_decay))


@torch.no_grad()
def test_rwkv4_is_linear_attention_of_one_key_with_a_column_of_ones():
    """Its keys e^k, a fixed decay, read before the token is written; the token itself counts by its bonus."""
    mixer, k, v = create_mixer("rwkv4", 3).double(), normal(B, L, 3), normal(B, L, 3, seed=1)
    got, _ = mixer.average(k, v, mixer.init_state(B), torch.full((B,), L))
    weight = k.exp()[..., None]
    values = torch.stack([v, torch.ones_like(v)], -1)
    decay = -mixer.decay.exp().expand(B, L, -1)
    o = chunked_scan(torch.ones_like(weight), weight, values, log_decay=decay)
    late = torch.cat([torch.zeros_like(o[:, :1]), o[:, :-1]], 1)
    num, den = (late + (mixer.bonus + k).exp()[..., None] * values).unbind(-1)
    same(got, num / den)


@torch.no_grad()
def test_mlstm_is_decayed_linear_attention_with_a_column_of_ones(qkv):
    mixer, x = create_mixer("mlstm", H * N, num_heads=H, input_bias=0.3).double(), normal(B, L, H * N)
    q, k, _ = qkv
    v = normal(B, L, H, N, seed=2)
    got, _ = mixer.remember(x, q, k, v, None, Context())
    key = k * mixer.i_proj(x).exp()[..., None] / N**0.5
    forget = F.logsigmoid(mixer.f_proj(x))
    o = chunked_scan(q, key, torch.cat([v, torch.ones_like(v[..., :1])], -1), log_decay=forget)
    same(got, o[..., :-1] / o[..., -1:].abs().clamp(min=1))


@torch.no_grad()
def test_megas_average_is_s4d_with_real_poles():
    mega = create_mixer("mega", 3, d_state=4).double()
    s4d = create_mixer("s4d", 3, d_state=4, init="real", rule="euler").double()
    A, weight, C, _ = mega.averages()
    s4d.A_log.copy_((-A).log())
    s4d.C.copy_(weight * C)
    s4d.D.copy_(mega.omega)
    s4d.log_dt.zero_()
    same(s4d.kernel(40), diagonal_kernel(mega.averages(), mega.omega, 40, "euler"))


@torch.no_grad()
def test_rwkv6_writes_as_gla_does():
    """The same memory after the last token; it is only read one token earlier."""
    torch.manual_seed(0)
    mixer, x = create_mixer("rwkv6", 8, num_heads=2, rank=2, decay_rank=2).double(), normal(B, L, 8)
    w, k, v, _, _ = mixer.shifted(x, None, Context())
    k, v = mixer.heads(mixer.k_proj(k)), mixer.heads(mixer.v_proj(v))
    log_decay = -(mixer.decay + mixer.w_map(w)).exp().unflatten(-1, (2, -1))
    want = chunked_scan(k, k, v, log_decay=log_decay, return_last_state=True)[1]
    same(mixer(x, return_state=True)[1]["memory"], want)

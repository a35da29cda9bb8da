"""Run the authors' own solvers on a toy denoiser and write reference.json.

    python record.py DIFF_SAMPLER ER_SDE GRADIENT_ESTIMATION SMEA

Arguments: check-outs of zju-pi/diff-sampler (68d5ce4), QinpengCui/ER-SDE-Solver (25ca6c2),
ToyotaResearchInstitute/gradient-estimation-sampler (6809d28) and Koishi-Star/Euler-Smea-Dyn-Sampler (d98a504).
"""

import json
import math
import sys
from pathlib import Path

import torch


SIGMAS = [14.6, 9.1, 5.2, 2.9, 1.5, 0.7, 0.3, 0.05, 0.0]
SHAPE = (2, 1, 5, 6)


def start() -> torch.Tensor:
    return torch.linspace(-2, 2, math.prod(SHAPE), dtype=torch.float64).sin().view(SHAPE) * SIGMAS[0]


def draw(number: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    """What stands for noise: draw `number` = 0, 1, … of a run."""
    return torch.cos(torch.arange(math.prod(shape), dtype=torch.float64) * 1.7 + number).view(shape)


def waves(x: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
    """No ideal denoiser, but one that bends."""
    sigma = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1)[0]
    return torch.tanh(x / (1 + sigma**2)) + 0.1 * torch.sin(3 * sigma)


class Draws:
    """Stands for torch.randn_like."""

    def __init__(self):
        self.number = -1

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.number += 1
        return draw(self.number)


def main(diff_sampler: str, er_sde: str, gradient_estimation: str, smea: str) -> None:
    for folder in (f"{diff_sampler}/diff-solvers-main", er_sde, f"{gradient_estimation}/gescheduler", smea):
        sys.path.append(folder)
    import er_sde_solver
    import k_diffusion.sampling
    import smea_sampling
    import solver_utils
    import solvers
    from scheduling_gradient_estimation import GEScheduler

    sigmas = torch.tensor(SIGMAS, dtype=torch.float64)
    common = {"t_steps": sigmas, "num_steps": len(sigmas), "max_order": 4}
    found = {}
    first = start() / SIGMAS[0]
    found["IPNDM"] = solvers.ipndm_sampler(waves, first, **common)
    found["IPNDM_V"] = solvers.ipndm_v_sampler(waves, first, **common)
    above = sigmas[:-1]  # its integrals have no value at 0
    weights = solver_utils.get_deis_coeff_list(above, 4, deis_mode="tab")
    found["DEIS"] = solvers.deis_sampler(waves, first, coeff_list=weights, **{**common, "t_steps": above})

    er_sde_solver.torch.randn_like = Draws()
    er_sde_solver.np.exp = torch.exp  # its scale function gets tensors
    solver = er_sde_solver.ER_SDE_Solver("ve", "x_start")
    found["ER SDE"] = solver.ve_3_order_taylor(waves, start(), sigmas, sigmas)

    scheduler = GEScheduler(clip_sample=False)
    scheduler.timesteps = list(range(len(sigmas) - 1, 0, -1))
    scheduler._timesteps_map = {t: t - 1 for t in scheduler.timesteps}
    scheduler.sigma = lambda t: sigmas[len(sigmas) - 1 - t]
    scheduler.num_inference_steps, scheduler.eps_prev, x = len(sigmas) - 1, None, start()
    for t in scheduler.timesteps:
        eps = (x - waves(x, scheduler.sigma(t))) / scheduler.sigma(t)
        x = scheduler.step(eps, t, x, return_dict=False)[0]
    found["Gradient Estimation"] = x

    smea_sampling.sampling = k_diffusion.sampling
    for label, loop in (
        ("Euler Dy", smea_sampling.sample_euler_dy),
        ("Euler SMEA Dy", smea_sampling.sample_euler_smea_dy),
    ):
        smea_sampling.torch.randn_like = Draws()
        found[label] = loop(waves, start(), sigmas, disable=True, s_tmin=0.2, s_tmax=10.0, s_noise=1.01)
    table = {label: x.flatten().tolist() for label, x in found.items()}
    (Path(__file__).parent / "reference.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

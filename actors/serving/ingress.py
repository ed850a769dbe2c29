"""The HTTP interface as a FastAPI application; it holds no model and decodes nothing."""

from __future__ import annotations

import numpy as np
from fastapi import FastAPI, Security
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBearer

from ...pipelines.assessing.spec import NotAssessable
from . import inference, openai
from .auditing import AuditLog, Auditor
from .drift import DriftResponse
from .guard import Guard
from .keeping import Keep
from .messages import (
    AnswerRequest,
    AnswerResponse,
    AssessRequest,
    AssessResponse,
    CategoryResult,
    ClassifyRequest,
    ClassifyResponse,
    EmbedRequest,
    EmbedResponse,
    Health,
    ModerateRequest,
    ModerateResponse,
    SearchRequest,
    SearchResponse,
    SearchResult,
)
from .model import Model, Replicas
from .moderating import moderations
from .moderating.moderator import Moderator
from .page import page
from .problems import add_handlers, described
from .spec import ServingOptions
from .tokens import Access
from .watching import Watch


def build_api(
    replicas: Replicas,
    health: Health,
    options: ServingOptions,
    access: Access | None = None,
    audit: AuditLog | None = None,
    moderator: Moderator | None = None,
) -> FastAPI:
    """Build the HTTP interface over a model's replicas.

    Args:
        replicas: reaches them.
        health: what `/healthz` answers.
        options: limits, and what is told of requests.
        access: decides who may ask; None lets anyone.
        audit: is told of every request to the model; None if nobody wants to know.
        moderator: judges what is asked and answered; None lets everything through.
    """
    # for the pages: see `Guard`
    bearer = [] if access is None else [Security(HTTPBearer(auto_error=False))]
    model = Model(replicas, health, options.limits, moderator)
    api = FastAPI(
        title="Eagleray",
        summary="Embeds text, pictures and speech in one space, searches by them, and answers from them.",
        version=health.bundle[:12],
    )

    @api.get("/", tags=["service"], response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        """A page to ask the model in a browser."""
        html, headers = page()
        return HTMLResponse(html, headers=headers)

    @api.get("/healthz", tags=["service"])
    async def healthz() -> Health:
        """Say that the service is up, and which bundle it serves."""
        return health

    @api.post("/v1/embed", tags=["model"], dependencies=bearer, responses=described())
    async def embed(request: EmbedRequest) -> EmbedResponse:
        """Embed up to some dozens of inputs as unit vectors of one space."""
        vectors = await model.embed(request.inputs)
        return EmbedResponse(
            embeddings=[vector.tolist() for vector in vectors], dim=health.embed_dim, bundle=health.bundle
        )

    @api.post("/v1/search", tags=["model"], dependencies=bearer, responses=described())
    async def search(request: SearchRequest) -> SearchResponse:
        """Rank the corpus's pictures by a text, a picture or a spoken sentence."""
        hits = await model.search(request, request.top_k)
        results = [
            SearchResult(id=hit.id, caption=hit.caption, category=hit.category, score=hit.score)
            for hit in hits
        ]
        return SearchResponse(results=results, bundle=health.bundle)

    @api.post("/v1/classify", tags=["model"], dependencies=bearer, responses=described())
    async def classify(request: ClassifyRequest) -> ClassifyResponse:
        """Say which categories a picture is likely of."""
        likely = await model.classify(request.input)
        best = np.argsort(-likely, kind="stable")[: request.top_k].tolist()
        found = [CategoryResult(category=health.classes[one], probability=float(likely[one])) for one in best]
        return ClassifyResponse(categories=found, bundle=health.bundle)

    @api.post("/v1/assess", tags=["model"], dependencies=bearer, responses=described())
    async def assess(request: AssessRequest) -> AssessResponse:
        """Say what a document is about, or what is found in a picture or a volume; or why that isn't said."""
        found = await model.assess(request)
        if isinstance(found, NotAssessable):
            return AssessResponse(assessable=False, problem=found, bundle=health.bundle)
        told = {request.kind: found}
        return AssessResponse.model_validate({"assessable": True, "bundle": health.bundle, **told})

    @api.post("/v1/answer", tags=["model"], dependencies=bearer, responses=described())
    async def answer(request: AnswerRequest) -> AnswerResponse:
        """Answer a question about a picture and speech, and say where in them the answer was found."""
        return await model.answer(request)

    @api.get("/v1/drift", tags=["service"], dependencies=bearer, responses=described())
    async def drift() -> DriftResponse:
        """Say how far what the replica that answers was asked lies from what the model was trained on."""
        return await model.drift()

    @api.post("/v1/moderate", tags=["model"], dependencies=bearer, responses=described())
    async def moderate(request: ModerateRequest) -> ModerateResponse:
        """Judge a text, a picture and speech, each by itself and together; nothing is refused for it."""
        found = await model.moderate(request.inputs)
        return ModerateResponse(action=found.action, judgements=found.judgements, bundle=health.bundle)

    api.include_router(openai.router(model), dependencies=bearer)
    api.include_router(moderations.router(model), dependencies=bearer)
    api.include_router(inference.router(model), dependencies=bearer)
    if options.samples is not None:
        api.add_middleware(Keep, samples=options.samples, bundle=health.bundle)
    api.add_middleware(
        Guard, bundle=health.bundle, limits=options.limits, access=access, overloaded=model.overloaded
    )
    if audit is not None:
        api.add_middleware(Auditor, log=audit, access=access, bundle=health.bundle)
    api.add_middleware(Watch, traces=options.traces, application=health.application)  # the outermost
    add_handlers(api)
    return api

# Google Cloud: settings in deploy/gcp/settings.env, any of them also as NAME=value here. DRY_RUN=1 prints what would run.
GCP := $(dir $(lastword $(MAKEFILE_LIST)))gcp.py
# names given to make; their values reach the program by the environment, where no shell reads them
GCP_GIVEN = $(foreach o,$(MAKEOVERRIDES),$(foreach n,$(firstword $(subst =, ,$(o))),$(if $(filter command,$(origin $(n))),$(n))))
GCP_RUN = python3 $(GCP) $(if $(DRY_RUN),--dry-run) $(patsubst gcp-%,%,$@) $(GCP_GIVEN)
.PHONY: gcp-setup gcp-data gcp-build gcp-train gcp-fetch gcp-deploy gcp-logs gcp-undeploy

gcp-setup: $(if $(VENV),setup) ## Google Cloud: APIs, bucket, image repository, service accounts, budget alert; DRY_RUN=1 prints every gcp- command
	@$(GCP_RUN)

gcp-data: $(if $(VENV),setup) ## send data that DVC tracks and the packed set to the bucket
	@$(GCP_RUN)

gcp-build: $(if $(VENV),setup) ## build and push the images with Cloud Build: IMAGES=all|train|serve
	@$(GCP_RUN)

gcp-train: $(if $(VENV),setup) ## train on Vertex AI: SOURCE, MODELS, BUDGET, SEEDS as in make train, NODES=1 PARAMS='train.lr=0.001'
	@$(GCP_RUN)

gcp-fetch: $(if $(VENV),setup) ## bring reports and the exported model of a job back: JOB=name
	@$(GCP_RUN)

gcp-deploy: $(if $(VENV),setup) ## the service on Cloud Run; prints its address
	@$(GCP_RUN)

gcp-logs: $(if $(VENV),setup) ## the newest jobs, and what the service said last
	@$(GCP_RUN)

gcp-undeploy: $(if $(VENV),setup) ## take the service down
	@$(GCP_RUN)

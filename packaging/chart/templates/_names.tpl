{{- define "hearth.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "hearth.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "hearth.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "hearth.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "hearth.selector" -}}
app.kubernetes.io/name: {{ include "hearth.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "hearth.labels" -}}
{{ include "hearth.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "hearth.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- define "hearth.scheme" -}}
{{ if .Values.tls.secretName }}HTTPS{{ else }}HTTP{{ end }}
{{- end }}

{{- /* What cannot work is refused here, not by pods that do not start. */}}
{{- define "hearth.check" -}}
{{- $many := or .Values.autoscaling.enabled (gt (int .Values.replicaCount) 1) }}
{{- if and $many .Values.state.enabled }}
{{- fail "several replicas share no state: set state.enabled=false, apiKeys.secretName and, with GitLab, signingKeys.secretName" }}
{{- end }}
{{- if and $many (not .Values.apiKeys.secretName) }}
{{- fail "each of several replicas would make its own API key: set apiKeys.secretName" }}
{{- end }}
{{- if and $many .Values.gitlab.url (not .Values.signingKeys.secretName) }}
{{- fail "each of several replicas would sign editors' tokens with its own key: set signingKeys.secretName" }}
{{- end }}
{{- if and .Values.model.list (not .Values.model.claim) (not .Values.extraVolumes) }}
{{- fail "model.list names checkpoints, and there is no volume with them: set model.claim" }}
{{- end }}
{{- if and .Values.serviceMonitor.enabled (not .Values.serviceMonitor.secretName) (not .Values.metrics.open) }}
{{- fail "Prometheus would be refused: set serviceMonitor.secretName to a key of class metrics, or metrics.open=true" }}
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) }}
{{- fail "no name would lead to Hearth: set ingress.hosts" }}
{{- end }}
{{- if and .Values.networkPolicy.enabled .Values.gitlab.url (not .Values.networkPolicy.egress) }}
{{- fail "networkPolicy would keep Hearth from GitLab: set networkPolicy.egress to GitLab's addresses" }}
{{- end }}
{{- end }}

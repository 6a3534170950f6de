# A small web Deployment from an image that the release brings, and its page through its Service.
# shellcheck shell=bash disable=SC2034,SC2154 # Variables are shared with image/boot and the other steps.

demo() {
    local version
    version=$(sed -n 's/^  "version": "\(.*\)",$/\1/p' "$image/release.json")
    "$kubectl" apply -f - <<EOF >/dev/null
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: web
        image: garboard.dev/sample:$version
        imagePullPolicy: Never
        args: [serve, --port, "8080"]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 2}
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
EOF
    wait_for "the Deployment web is available" 300 "$kubectl" rollout status deployment/web --timeout=10s
    wait_for "the page of the Service web" 60 page
    sed 's/^/    /' "$run/waiting.log"
}

# The page, fetched through the API server's proxy to the Service.
page() {
    "$kubectl" get --raw /api/v1/namespaces/default/services/web:http/proxy/ --request-timeout=10s
}

//! GitLab as the gateway sees it: without its public keys no token is good.

use std::time::{Duration, Instant, SystemTime};

use super::{Finding, Verdict, seconds};
use crate::config::Settings;
use crate::duo::identity::source::{Provider, Published, Source, SourceError};
use crate::duo::identity::{Bypass, Rules};
use crate::outbound::{Base, Limits, Outbound, OutboundError};

const LIMITS: Limits = Limits {
    connect: Duration::from_secs(5),
    idle: Duration::from_secs(5),
    total: Some(Duration::from_secs(10)),
    bytes: 1 << 20,
};

pub async fn gitlab(settings: &Settings) -> Vec<Finding> {
    let rules = &settings.gitlab.rules;
    let mut findings = vec![match &rules.gitlab {
        None => Finding::fails(
            "gitlab",
            "gitlab.url is not set, so every token of GitLab's is refused (401 Forbidden by auth provider)",
            "set gitlab.url, or AIGW_GITLAB_URL, to the address of GitLab as this host reaches it",
        ),
        Some(base) => keys("gitlab", Provider::GitLab, base, rules).await,
    }];
    if let Some(base) = &rules.gitlab {
        findings.extend(clock(base, rules).await);
    }
    if let Some(base) = &rules.portal {
        let found = keys("portal", Provider::Portal, base, rules).await;
        findings.push(match found.verdict {
            Verdict::Failure => Finding::warns(
                "portal",
                found.what,
                "only tokens that the customers portal signed are refused for it; without a connection to the \
                 internet leave gitlab.portal_url empty",
            ),
            _ => found,
        });
    }
    if let Some((what, fix)) = settings.gitlab.warning() {
        findings.push(Finding::warns("line", what, fix));
    }
    if rules.bypass != Bypass::Off {
        findings.push(Finding::warns(
            "tokens",
            "the check of tokens is switched off (gitlab.bypass), for whoever reaches this machine's loopback",
            "set gitlab.bypass to \"off\"",
        ));
    }
    findings
}

async fn keys(check: &'static str, provider: Provider, base: &Base, rules: &Rules) -> Finding {
    let begin = Instant::now();
    let source = match Source::new(provider, base.clone(), rules.authorities.as_deref()) {
        Ok(source) => source,
        Err(e) => return Finding::fails(check, e.to_string(), "correct gitlab.ca_file"),
    };
    match source.fetch().await {
        Ok(Published { set, problem: Some(problem) }) => Finding::warns(
            check,
            format!(
                "{base} gave {} in {}, but not its issuer: {problem}",
                count(set.keys.len()),
                seconds(begin)
            ),
            "tokens are good only if gitlab.url is also the URL that GitLab's users know (its external URL); else see \
             why /.well-known/openid-configuration is not answered",
        ),
        Ok(Published { set, problem: None }) => {
            let issuers = set.issuers.last().map(String::as_str).unwrap_or_default();
            let what =
                format!("{base} gave {} in {}; issuer {issuers}", count(set.keys.len()), seconds(begin));
            Finding::ok(check, what)
        }
        Err(e) => {
            let fix = advice(&e);
            Finding::fails(check, format!("{e}; tokens that it signed are refused"), fix)
        }
    }
}

fn advice(error: &SourceError) -> &'static str {
    match error {
        SourceError::Outbound(OutboundError::Unreachable { problem, .. })
            if problem.contains("certificate") =>
        {
            "the certificate is not trusted here: put its authority into gitlab.ca_file, or into the system's store"
        }
        SourceError::Outbound(OutboundError::Unreachable { problem, .. })
            if problem.contains("corrupt message") =>
        {
            "what answers there does not speak TLS: write http:// in gitlab.url, or the port of https"
        }
        SourceError::Outbound(OutboundError::Unreachable { .. } | OutboundError::Time { .. }) => {
            "check the address in gitlab.url, its name in DNS, and that this host may connect to it"
        }
        SourceError::Outbound(OutboundError::Redirect { .. }) => {
            "set gitlab.url to the address that it redirects to (often https instead of http)"
        }
        SourceError::Status { .. } | SourceError::NoDocument { .. } | SourceError::OtherPlace { .. } => {
            "what answers there is not GitLab: check gitlab.url, with its path if GitLab lives below one"
        }
        _ => "check gitlab.url",
    }
}

/// Tokens say from when to when they are good, by GitLab's clock.
async fn clock(base: &Base, rules: &Rules) -> Option<Finding> {
    let outbound = Outbound::new(base.clone(), rules.authorities.as_deref(), LIMITS).ok()?;
    let answer = outbound.get(base.join("/.well-known/openid-configuration")).await.ok()?;
    let theirs = httpdate::parse_http_date(answer.headers().get("date")?.to_str().ok()?).ok()?;
    let (ahead, apart) = match theirs.duration_since(SystemTime::now()) {
        Ok(apart) => ("ahead of", apart),
        Err(e) => ("behind", e.duration()),
    };
    let what = format!("GitLab's clock is {} s {ahead} this host's", apart.as_secs());
    // The header counts whole seconds.
    Some(match apart <= rules.leeway {
        true => Finding::ok("clock", what),
        false => Finding::fails(
            "clock",
            format!("{what}; tokens are refused beyond {} s", rules.leeway.as_secs()),
            "synchronise both clocks (NTP); gitlab.leeway can bridge a little",
        ),
    })
}

fn count(keys: usize) -> String {
    match keys {
        1 => "one signature key".to_owned(),
        several => format!("{several} signature keys"),
    }
}

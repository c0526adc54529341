//! What every page has around it: the name, the ways to the others, what is to be known first.

use axum::response::Html;
use maud::{DOCTYPE, Markup, html};

use super::sessions::Session;
use crate::admin::Admin;
use crate::admin::status::{Banner, minutes};
use crate::audit::Who;

/// The pages, in the order of the bar.
const PAGES: [(&str, &str); 4] =
    [("/", "Overview"), ("/playground", "Playground"), ("/keys", "Keys"), ("/doctor", "Doctor")];

/// A page for who is signed in. `here` is its path.
pub fn page(
    admin: &Admin,
    session: &Session,
    here: &str,
    script: Option<&str>,
    body: Markup,
) -> Html<String> {
    let told = session.told();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                (head(PAGES.iter().find(|(path, _)| *path == here).map_or("", |(_, name)| name)))
                meta name="csrf" content=(session.csrf);
                @if here == "/" { noscript { meta http-equiv="refresh" content="5"; } }
                @if let Some(script) = script { script src=(script) defer {} }
            }
            body {
                header.bar {
                    a.name href="/" { img src="/mark.svg" alt="" width="18" height="18"; "hearth" }
                    nav aria-label="Pages" {
                        @for (path, name) in PAGES {
                            a href=(path) aria-current=[(path == here).then_some("page")] { (name) }
                        }
                    }
                    span.who { (name(&session.who)) }
                    form method="post" action="/logout" { (csrf(session)) button.quiet { "Sign out" } }
                }
                main {
                    @if let Some((well, text)) = told {
                        p.told.fail[!well] role="status" { (text) }
                    }
                    (body)
                }
                footer { "hearth " (env!("CARGO_PKG_VERSION")) " · up " (minutes(admin.uptime().as_secs())) }
            }
        }
    };
    Html(page.into_string())
}

/// A page for who is not.
pub fn bare(title: &str, body: Markup) -> Html<String> {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head { (head(title)) }
            body.bare { main { (body) } }
        }
    };
    Html(page.into_string())
}

/// Who is signed in, as short as it is clear.
fn name(who: &Who) -> String {
    match who {
        Who::Key { name, .. } => name.clone(),
        Who::Link(who) => name(who),
        other => other.to_string(),
    }
}

fn head(title: &str) -> Markup {
    html! {
        meta charset="utf-8";
        title { (title) " · hearth" }
        meta name="viewport" content="width=device-width, initial-scale=1";
        meta name="color-scheme" content="light dark";
        link rel="icon" type="image/svg+xml" href="/mark.svg";
        link rel="stylesheet" href="/console.css";
    }
}

/// The field that a form must have to change anything.
pub fn csrf(session: &Session) -> Markup {
    html! { input type="hidden" name="csrf" value=(session.csrf); }
}

pub fn banners(banners: &[Banner]) -> Markup {
    html! {
        @for banner in banners {
            p class={ "banner " (banner.level) } { (banner.text) }
        }
    }
}

//! Code suggestions (steps 3 to 5 and 10 in the life of a request): completions while a person types, and generations
//! that were asked for.
//!
//! | route | who calls it | streams as |
//! |---|---|---|
//! | `/v2/code/completions`, `/v2/completions` | GitLab; editors directly | raw text |
//! | `/v2/code/generations` | GitLab 17 | raw text |
//! | `/v3/code/completions` | GitLab up to 18.9 | raw text |
//! | `/v4/code/suggestions` | GitLab from 17.6 on | events |
//!
//! Each checks its body, then the token's scopes, then chooses the model. [`completion`] and [`generation`] ask it,
//! [`rules`] make what it writes fit into the editor, [`reply`] sends that.

mod call;
mod completion;
mod components;
mod editor;
mod events;
mod generation;
mod language;
mod reply;
mod rules;
mod sampling;
mod suggestions;
mod v2;
mod window;
mod written;

use axum::routing::post;

use crate::server::routes::Route;

pub fn rows() -> Vec<Route> {
    vec![
        Route::gitlab("POST", "/v2/code/completions", post(v2::completions)),
        Route::gitlab("POST", "/v2/completions", post(v2::completions)),
        Route::gitlab("POST", "/v2/code/generations", post(v2::generations)),
        Route::gitlab("POST", "/v3/code/completions", post(suggestions::version_3)),
        Route::gitlab("POST", "/v4/code/suggestions", post(suggestions::version_4)),
    ]
}
